package criserver

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"go.yaml.in/yaml/v3"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ambipod/ambipod/pkg/cloudinit"
	"github.com/ambipod/ambipod/pkg/network"
)

// writeConfigDisk writes the cloud-init image of a VM.
func (s *Server) writeConfigDisk(ctx context.Context, box sandbox, vm container, plan vmPlan) error {
	from := sources{plan.volumes.mounts, func(kind, name string) (map[string][]byte, error) {
		return s.Objects.Data(ctx, kind, box.config.GetMetadata().GetNamespace(), name)
	}}
	config, err := cloudInitConfig(box, vm.config, plan, from)
	if err != nil {
		return err
	}
	render, label := cloudinit.NoCloud, cloudinit.LabelNoCloud
	if plan.settings.Datasource == "configdrive" {
		render, label = cloudinit.ConfigDrive, cloudinit.LabelConfigDrive
	}
	documents, err := render(config)
	if err != nil {
		return err
	}
	return cloudinit.WriteISO(s.Layout.VM(vm.ID).ConfigDisk(), label, documents)
}

// cloudInitConfig is what a guest is told at its first boot. The instance ID follows
// the pod's UID, so that a re-created pod of the same name runs cloud-init again,
// unless the pod names one.
func cloudInitConfig(box sandbox, vm *runtimeapi.ContainerConfig, plan vmPlan, from sources) (cloudinit.Config, error) {
	settings := plan.settings
	config := cloudinit.Config{
		InstanceID: cmp.Or(settings.InstanceID, "pod-"+box.config.GetMetadata().GetUid()),
		NetworkV1:  settings.NetworkConfigV1,
		Hostname:   hostname(box.config),
		BootCmd:    plan.volumes.bootCommands(),
	}
	if command := slices.Concat(vm.GetCommand(), vm.GetArgs()); len(command) > 0 {
		config.Process = &cloudinit.Process{Args: command, Dir: vm.GetWorkingDir()}
	}
	result, err := networkResult(box.Sandbox)
	if err != nil {
		return config, err
	}
	config.Env = environment(vm, result.DNS)
	if config.WriteFiles, err = guestFiles(plan.volumes.files); err != nil {
		return config, err
	}
	files, err := filesFromSource(from, settings.FilesSource)
	if err != nil {
		return config, err
	}
	config.WriteFiles = append(config.WriteFiles, files...)
	if config.SSHKeys, err = guestKeys(from, settings); err != nil {
		return config, err
	}
	if config.UserData, err = guestUserData(from, settings); err != nil {
		return config, err
	}
	if err := yaml.Unmarshal([]byte(settings.MetaData), &config.MetaData); err != nil {
		return config, fmt.Errorf("meta-data of pod %s: %w: %w", podName(box.config), err, errdefs.ErrInvalidArgument)
	}
	if settings.ForceDHCP {
		return config, nil
	}
	config.Network, err = guestNetwork(result)
	return config, err
}

// resolverVariable has the C library's resolver take options from it in place of
// resolv.conf's, see resolv.conf(5).
const resolverVariable = "RES_OPTIONS"

// environment is that of the pod's container. The resolver's options are told here,
// because whatever writes the guest's resolv.conf has no room for them.
func environment(vm *runtimeapi.ContainerConfig, dns network.DNS) []cloudinit.EnvVar {
	var env []cloudinit.EnvVar
	options := strings.Join(dns.Options, " ")
	for _, variable := range vm.GetEnvs() {
		if variable.GetKey() == resolverVariable {
			options = ""
		}
		env = append(env, cloudinit.EnvVar{Name: variable.GetKey(), Value: string(variable.GetValue())})
	}
	if options != "" {
		env = append(env, cloudinit.EnvVar{Name: resolverVariable, Value: options})
	}
	return env
}

// hostname is the guest's name; kubelet sets none for pods of the node's own network.
func hostname(pod *runtimeapi.PodSandboxConfig) string {
	if pod.GetHostname() != "" {
		return pod.GetHostname()
	}
	return pod.GetMetadata().GetName()
}

// guestNetwork tells a guest the addresses that CNI gave to its pod.
func guestNetwork(result *network.Result) (*cloudinit.NetworkConfig, error) {
	config := &cloudinit.NetworkConfig{}
	for _, nic := range result.Interfaces {
		mac, err := net.ParseMAC(nic.MAC)
		if err != nil {
			return nil, fmt.Errorf("MAC address of interface %s: %w", nic.Name, err)
		}
		guest := cloudinit.Interface{MAC: mac, Name: nic.Name, MTU: nic.MTU, Addresses: nic.Addresses}
		for _, route := range result.Routes {
			if route.Interface == nic.Name {
				guest.Routes = append(guest.Routes, cloudinit.Route{To: route.Destination, Via: route.Gateway, Metric: route.Metric})
			}
		}
		config.Interfaces = append(config.Interfaces, guest)
	}
	if len(config.Interfaces) > 0 {
		config.Interfaces[0].DNS = guestDNS(result.DNS)
	}
	return config, nil
}

// guestDNS leaves out servers that are no addresses; cloud-init could not use them.
func guestDNS(dns network.DNS) cloudinit.DNS {
	guest := cloudinit.DNS{Search: dns.Searches, Options: dns.Options}
	for _, server := range dns.Servers {
		if address, err := netip.ParseAddr(server); err == nil {
			guest.Servers = append(guest.Servers, address)
		}
	}
	return guest
}
