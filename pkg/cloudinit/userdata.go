package cloudinit

import (
	"bytes"
	"cmp"
	"encoding/base64"
	"fmt"
	"strings"
)

// generated is the cloud-config that Ambipod itself contributes.
type generated struct {
	Mounts     [][]string          `yaml:"mounts,omitempty"`
	WriteFiles []writeFileDocument `yaml:"write_files,omitempty"`
	BootCmd    []Command           `yaml:"bootcmd,omitempty"`
	RunCmd     []Command           `yaml:"runcmd,omitempty"`

	ManageResolvConf bool                `yaml:"manage_resolv_conf,omitempty"`
	ResolvConf       *resolvConfDocument `yaml:"resolv_conf,omitempty"`
}

// resolvConfDocument is what cloud-init's module resolv_conf reads.
type resolvConfDocument struct {
	Servers []string       `yaml:"nameservers,omitempty"`
	Search  []string       `yaml:"searchdomains,omitempty"`
	Options map[string]any `yaml:"options"`
}

type writeFileDocument struct {
	Path        string `yaml:"path"`
	Permissions string `yaml:"permissions"`
	Owner       string `yaml:"owner,omitempty"`
	Encoding    string `yaml:"encoding,omitempty"`
	Content     string `yaml:"content"`
}

func (c Config) generated() generated {
	g := generated{BootCmd: c.BootCmd, RunCmd: c.RunCmd}
	for _, m := range c.Mounts {
		g.Mounts = append(g.Mounts, m.entry())
	}
	for _, f := range c.allFiles() {
		g.WriteFiles = append(g.WriteFiles, f.document())
	}
	g.ResolvConf = c.Network.resolvConf()
	g.ManageResolvConf = g.ResolvConf != nil
	return g
}

// resolvConf is nil when the network's configuration says all there is to say.
func (n *NetworkConfig) resolvConf() *resolvConfDocument {
	if n == nil {
		return nil
	}
	doc := &resolvConfDocument{Options: map[string]any{}}
	for _, i := range n.Interfaces {
		for _, server := range i.DNS.Servers {
			doc.Servers = append(doc.Servers, server.String())
		}
		doc.Search = append(doc.Search, i.DNS.Search...)
		for _, option := range i.DNS.Options {
			name, value, found := strings.Cut(option, ":")
			doc.Options[name] = value
			if !found {
				doc.Options[name] = true
			}
		}
	}
	if len(doc.Options) == 0 {
		return nil
	}
	return doc
}

// entry are the first four fields of an fstab line.
func (m Mount) entry() []string {
	entry := []string{m.Device, m.Dir, "auto", "defaults,nofail"}
	if m.Type != "" {
		entry[2] = m.Type
	}
	if m.Options != "" {
		entry[3] = m.Options
	}
	return entry
}

func (f WriteFile) document() writeFileDocument {
	mode := f.Mode
	if mode == 0 {
		mode = 0o644
	}
	doc := writeFileDocument{Path: f.Path, Permissions: fmt.Sprintf("%04o", mode), Owner: f.Owner}
	if isPlainText(f.Content) {
		doc.Content = string(f.Content)
	} else {
		doc.Encoding = "b64"
		doc.Content = base64.StdEncoding.EncodeToString(f.Content)
	}
	return doc
}

// isPlainText tells whether every YAML reader hands a text on unchanged.
func isPlainText(content []byte) bool {
	for _, c := range content {
		if c != '\n' && (c < ' ' || c > '~') {
			return false
		}
	}
	// A block scalar cannot begin with white space without an indentation
	// indicator, which simple readers get wrong.
	return !bytes.HasPrefix(content, []byte(" ")) && !bytes.HasPrefix(content, []byte("\n"))
}

// userAndVendorData renders the two documents; nil means that there is none.
func (c Config) userAndVendorData() (user, vendor []byte, err error) {
	contribution := c.generated()
	if c.UserData.Document.has("manage_resolv_conf") || c.UserData.Document.has("resolv_conf") {
		contribution.ManageResolvConf, contribution.ResolvConf = false, nil // the author's word counts
	}
	own, err := contribution.document()
	if err != nil {
		return nil, nil, err
	}
	if len(c.UserData.Raw) > 0 {
		vendor, err = own.render()
		return c.UserData.Raw, vendor, err
	}
	if !c.UserData.Document.IsEmpty() && !own.IsEmpty() {
		// merge_how, if there is one, is about the author's own documents.
		own = Document{root: deepMerge{}.merge(c.UserData.Document.root, own.root)}
	} else if own.IsEmpty() {
		own = c.UserData.Document
	}
	user, err = own.render()
	if user == nil {
		user = []byte(cloudConfigHeader)
	}
	return user, nil, err
}

func (g generated) document() (Document, error) {
	text, err := marshalYAML(g)
	if err != nil {
		return Document{}, err
	}
	return ParseDocument(text)
}

// EnvironmentFile is where a guest finds the environment variables of the pod's
// container, as assignments that a shell can read.
const EnvironmentFile = "/etc/cloud/environment"

// processScript is run by cloud-init at the end of each boot.
const processScript = "/var/lib/cloud/scripts/per-boot/50-ambipod-process.sh"

// allFiles are the caller's and those that Env and Process need.
func (c Config) allFiles() []WriteFile {
	files := append([]WriteFile{}, c.WriteFiles...)
	if len(c.Env) > 0 {
		files = append(files, WriteFile{Path: EnvironmentFile, Content: environment(c.Env)})
	}
	if c.Process != nil {
		files = append(files, WriteFile{Path: processScript, Content: c.Process.script(c.Env), Mode: 0o755})
	}
	return files
}

func environment(env []EnvVar) []byte {
	var b bytes.Buffer
	for _, v := range env {
		if !shellNamePattern.MatchString(v.Name) {
			fmt.Fprintf(&b, "# %s is no name that a shell can set\n", v.Name)
			continue
		}
		b.WriteString(v.assignment() + "\n")
	}
	return b.Bytes()
}

func (v EnvVar) assignment() string { return v.Name + "=" + shellQuote(v.Value) }

// script starts the process and leaves it running, so that the boot can finish;
// its output goes to the console and thus to the pod's log.
func (p Process) script(env []EnvVar) []byte {
	words := []string{"setsid", "env"}
	for _, v := range env {
		words = append(words, shellQuote(v.Name+"="+v.Value))
	}
	for _, arg := range p.Args {
		words = append(words, shellQuote(arg))
	}
	return fmt.Appendf(nil, `#!/bin/sh
# Written by Ambipod: starts the command of the pod's container.
cd %s || exit 1
%s </dev/null >/dev/console 2>&1 &
`, shellQuote(cmp.Or(p.Dir, "/")), strings.Join(words, " "))
}

// shellQuote leaves words alone that no shell interprets.
func shellQuote(word string) string {
	const safe = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_@%+=:,./-"
	if word != "" && strings.Trim(word, safe) == "" {
		return word
	}
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
}
