package redirect

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// aliasPrefix marks a tap whose rules are complete; a digest of them follows.
const aliasPrefix = "ambipod:"

var ingress = netlink.MakeHandle(0xffff, 0)

// Pair is an interface and its guest's tap, with the sink for what neither gets.
// All three must be up.
type Pair struct {
	Interface, Tap, Sink netlink.Link
}

// Apply joins the pair. If it has been joined in the same way before, nothing
// is touched, so that a running guest loses no packet.
func Apply(h *netlink.Handle, p Pair, g Guest) error {
	if len(g.MAC) != 6 {
		return fmt.Errorf("redirect %s: MAC address %q is not an Ethernet address: %w", p.Interface.Attrs().Name, g.MAC, errdefs.ErrInvalidArgument)
	}
	onInterface, onTap := InterfaceRules(g), TapRules(g)
	alias := p.fingerprint(onInterface, onTap)
	same, err := p.intact(h, alias, len(onInterface), len(onTap))
	if err != nil || same {
		return err
	}
	if err := install(h, p.Interface, p.Tap, p.Sink, onInterface); err != nil {
		return err
	}
	if err := install(h, p.Tap, p.Interface, p.Sink, onTap); err != nil {
		return err
	}
	if err := h.LinkSetAlias(p.Tap, alias); err != nil {
		return fmt.Errorf("set alias of %s: %w", p.Tap.Attrs().Name, err)
	}
	return nil
}

// fingerprint changes with everything that the installed rules depend on.
func (p Pair) fingerprint(ruleSets ...[]Rule) string {
	var b strings.Builder
	fmt.Fprintln(&b, p.Interface.Attrs().Index, p.Tap.Attrs().Index, p.Sink.Attrs().Index)
	for _, rules := range ruleSets {
		for _, r := range rules {
			fmt.Fprintln(&b, r)
		}
	}
	sum := sha256.Sum256([]byte(b.String()))
	return fmt.Sprintf("%s%x", aliasPrefix, sum[:16])
}

func (p Pair) intact(h *netlink.Handle, alias string, onInterface, onTap int) (bool, error) {
	if p.Tap.Attrs().Alias != alias {
		return false, nil
	}
	for link, want := range map[netlink.Link]int{p.Interface: onInterface, p.Tap: onTap} {
		have, err := countRules(h, link)
		if err != nil || have != want {
			return false, err
		}
	}
	return true, nil
}

// countRules counts the u32 nodes on the ingress of link; the kernel lists each
// priority's hash table (node 0) as a filter too.
func countRules(h *netlink.Handle, link netlink.Link) (int, error) {
	filters, err := h.FilterList(link, ingress)
	if err != nil {
		return 0, fmt.Errorf("list filters of %s: %w", link.Attrs().Name, err)
	}
	n := 0
	for _, f := range filters {
		if f.Type() == "u32" && f.Attrs().Handle&0xfff != 0 {
			n++
		}
	}
	return n, nil
}

// install replaces all filters on the ingress of link.
func install(h *netlink.Handle, link, peer, sink netlink.Link, rules []Rule) error {
	name := link.Attrs().Name
	qdisc := &netlink.Ingress{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: link.Attrs().Index, Handle: ingress, Parent: netlink.HANDLE_INGRESS,
	}}
	if err := h.QdiscDel(qdisc); err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("remove ingress qdisc of %s: %w", name, err)
	}
	if err := h.QdiscAdd(qdisc); err != nil {
		return fmt.Errorf("add ingress qdisc to %s (the kernel needs NET_SCH_INGRESS, NET_CLS_U32 and NET_ACT_MIRRED): %w", name, err)
	}
	for _, r := range rules {
		if err := h.FilterAdd(filter(r, link, peer, sink)); err != nil {
			return fmt.Errorf("add filter %q to %s (the kernel needs NET_CLS_U32 and NET_ACT_MIRRED): %w", r, name, err)
		}
	}
	return nil
}

func filter(r Rule, link, peer, sink netlink.Link) *netlink.U32 {
	f := &netlink.U32{
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: link.Attrs().Index,
			Parent:    ingress,
			Priority:  r.Priority,
			Protocol:  r.Protocol,
		},
		ClassId: netlink.MakeHandle(1, 1),
	}
	if len(r.Matches) > 0 {
		// The library sends all of the slice's capacity, so it has to be exact.
		f.Sel = &netlink.TcU32Sel{Flags: netlink.TC_U32_TERMINAL, Keys: make([]netlink.TcU32Key, len(r.Matches))}
		for i, m := range r.Matches {
			f.Sel.Keys[i] = netlink.TcU32Key{Mask: m.Mask, Val: m.Value, Off: m.Offset}
		}
	}
	switch r.Target {
	case ToPeer:
		f.Actions = []netlink.Action{netlink.NewMirredAction(peer.Attrs().Index)}
	case ToSink:
		f.Actions = []netlink.Action{netlink.NewMirredAction(sink.Attrs().Index)}
	case ToLocal: // a match without action ends the search and accepts
	}
	return f
}
