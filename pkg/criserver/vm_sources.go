package criserver

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"maps"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"go.yaml.in/yaml/v3"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ambipod/ambipod/pkg/annotations"
	"github.com/ambipod/ambipod/pkg/cloudinit"
)

// defaultKeys is the entry of a ConfigMap or Secret that holds SSH keys.
const defaultKeys = "authorized_keys"

// script is user-data that reaches the guest as it is but for the placeholder of
// Virtlet's scripts. The pod's volumes are mounted before any script runs, so a
// command that does nothing takes its place.
func script(text []byte) []byte {
	placeholder := []byte(annotations.MountScript)
	if bytes.HasPrefix(text, placeholder) {
		text = append([]byte("#!/bin/sh\n"), text...)
	}
	return bytes.ReplaceAll(text, placeholder, []byte("true"))
}

// sources are where ConfigMaps and Secrets come from that annotations name.
type sources struct {
	mounts []*runtimeapi.Mount // the pod's volumes; what they hold is taken from there
	// fetch asks the API server for an object of the pod's namespace.
	fetch func(kind, name string) (map[string][]byte, error)
}

// read returns the entries of the ConfigMap or Secret that an annotation names: from
// the volume of the pod that kubelet has filled with it, else from the API server.
func (s sources) read(source annotations.Source) (map[string][]byte, error) {
	for _, mount := range s.mounts {
		folder, entry := mount.GetHostPath(), source.Key
		switch {
		case source.Path == "":
			// Kubelet's own naming, pkg/volume/util: …/volumes/kubernetes.io~secret/NAME.
			if filepath.Base(folder) != source.Volume || filepath.Base(filepath.Dir(folder)) != "kubernetes.io~"+source.Kind {
				continue
			}
		case path.Clean(mount.GetContainerPath()) != source.Path:
			continue
		}
		var collected fileCollector
		if err := collected.addMount(&runtimeapi.Mount{ContainerPath: "/" + path.Base(source.Path), HostPath: folder}); err != nil {
			return nil, err
		}
		return entries(collected.files, entry), nil
	}
	if source.Path != "" {
		return nil, fmt.Errorf("the container mounts no volume at %s: %w", source.Path, errdefs.ErrInvalidArgument)
	}
	data, err := s.fetch(source.Kind, source.Volume)
	if err != nil || source.Key == "" {
		return data, err
	}
	content, found := data[source.Key]
	if !found {
		return nil, fmt.Errorf("%s %s has no entry %q, it has %q: %w", source.Kind, source.Volume, source.Key, slices.Sorted(maps.Keys(data)), errdefs.ErrInvalidArgument)
	}
	return map[string][]byte{source.Key: content}, nil
}

// entries are files by their last name; only one of them if it is asked for.
func entries(files []cloudinit.WriteFile, only string) map[string][]byte {
	found := map[string][]byte{}
	for _, file := range files {
		if name := path.Base(file.Path); only == "" || name == only {
			found[name] = file.Content
		}
	}
	return found
}

// guestUserData is the author's user-data from annotations and volumes.
func guestUserData(from sources, settings annotations.Settings) (cloudinit.UserData, error) {
	own, err := cloudinit.ParseDocument([]byte(settings.UserData))
	if err != nil || settings.UserScript != "" || settings.UserDataSource == (annotations.Source{}) || settings.UserDataOverwrite && !own.IsEmpty() {
		return cloudinit.UserData{Raw: script([]byte(settings.UserScript)), Document: own}, err
	}
	data, err := from.read(settings.UserDataSource)
	if err != nil {
		return cloudinit.UserData{}, fmt.Errorf("annotation %suser-data-source: %w", annotations.Domain, err)
	}
	if settings.UserDataKey != "" {
		return rawUserData(data, settings)
	}
	base, err := mappingOf(data)
	if err != nil {
		return cloudinit.UserData{}, fmt.Errorf("annotation %suser-data-source: %w", annotations.Domain, err)
	}
	merged, err := cloudinit.Merge(base, own)
	return cloudinit.UserData{Document: merged}, err
}

func rawUserData(data map[string][]byte, settings annotations.Settings) (cloudinit.UserData, error) {
	text, found := data[settings.UserDataKey]
	if !found {
		return cloudinit.UserData{}, fmt.Errorf("annotation %suser-data-source-key: there is no entry %q among %q: %w",
			annotations.Domain, settings.UserDataKey, slices.Sorted(maps.Keys(data)), errdefs.ErrInvalidArgument)
	}
	if settings.UserDataBase64 {
		decoded, err := decode(text)
		if err != nil {
			return cloudinit.UserData{}, fmt.Errorf("annotation %suser-data-source-key: entry %s: %w", annotations.Domain, settings.UserDataKey, err)
		}
		text = decoded
	}
	return cloudinit.UserData{Raw: script(text)}, nil
}

func decode(text []byte) ([]byte, error) {
	decoded, err := base64.StdEncoding.DecodeString(string(bytes.Join(bytes.Fields(text), nil)))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	return decoded, nil
}

// mappingOf makes a cloud-config of entries whose values are YAML each.
func mappingOf(data map[string][]byte) (cloudinit.Document, error) {
	var text bytes.Buffer
	for _, key := range slices.Sorted(maps.Keys(data)) {
		var value yaml.Node
		if err := yaml.Unmarshal(data[key], &value); err != nil {
			return cloudinit.Document{}, fmt.Errorf("entry %s is no YAML: %w: %w", key, err, errdefs.ErrInvalidArgument)
		}
		if value.Kind == 0 { // an empty entry
			continue
		}
		part, err := yaml.Marshal(map[string]*yaml.Node{key: value.Content[0]})
		if err != nil {
			return cloudinit.Document{}, fmt.Errorf("entry %s: %w", key, err)
		}
		text.Write(part)
	}
	return cloudinit.ParseDocument(text.Bytes())
}

// guestKeys are the SSH keys from a volume and then those of the annotation.
func guestKeys(from sources, settings annotations.Settings) ([]string, error) {
	source := settings.SSHKeySource
	if source == (annotations.Source{}) || settings.UserDataOverwrite && len(settings.SSHKeys) > 0 {
		return settings.SSHKeys, nil
	}
	if source.Key == "" && source.Path == "" {
		source.Key = defaultKeys
	}
	// A path may be that of one entry in the folder that is mounted.
	if folder, entry := path.Split(source.Path); source.Path != "" && !slices.ContainsFunc(from.mounts, func(m *runtimeapi.Mount) bool {
		return path.Clean(m.GetContainerPath()) == source.Path
	}) {
		source.Path, source.Key = path.Clean(folder), entry
	}
	data, err := from.read(source)
	if err != nil {
		return nil, fmt.Errorf("annotation %sssh-key-source: %w", annotations.Domain, err)
	}
	if len(data) != 1 {
		return nil, fmt.Errorf("annotation %sssh-key-source: %d entries of the volume are meant instead of one, name another key or file: %w",
			annotations.Domain, len(data), errdefs.ErrInvalidArgument)
	}
	var keys []string
	for _, text := range data {
		for line := range strings.Lines(string(text)) {
			if line = strings.TrimSpace(line); line != "" {
				keys = append(keys, line)
			}
		}
	}
	return append(keys, settings.SSHKeys...), nil
}

// filesFromSource are the files that a ConfigMap or Secret describes by entries X,
// X_path and X_encoding.
func filesFromSource(from sources, source annotations.Source) ([]cloudinit.WriteFile, error) {
	if source == (annotations.Source{}) {
		return nil, nil
	}
	data, err := from.read(source)
	if err != nil {
		return nil, fmt.Errorf("annotation %sfiles-from-data-source: %w", annotations.Domain, err)
	}
	var files []cloudinit.WriteFile
	for _, key := range slices.Sorted(maps.Keys(data)) {
		name, isPath := strings.CutSuffix(key, "_path")
		if !isPath {
			continue
		}
		file, err := fileFromEntries(data, name)
		if err != nil {
			return nil, fmt.Errorf("annotation %sfiles-from-data-source: entry %s: %w", annotations.Domain, name, err)
		}
		files = append(files, file)
	}
	return files, nil
}

func fileFromEntries(data map[string][]byte, name string) (cloudinit.WriteFile, error) {
	content, found := data[name]
	if !found {
		return cloudinit.WriteFile{}, fmt.Errorf("it has a path and no content: %w", errdefs.ErrInvalidArgument)
	}
	switch encoding := strings.TrimSpace(string(data[name+"_encoding"])); encoding {
	case "plain":
	case "", "base64":
		decoded, err := decode(content)
		if err != nil {
			return cloudinit.WriteFile{}, err
		}
		content = decoded
	default:
		return cloudinit.WriteFile{}, fmt.Errorf("encoding %q is neither plain nor base64: %w", encoding, errdefs.ErrInvalidArgument)
	}
	return cloudinit.WriteFile{Path: path.Clean(strings.TrimSpace(string(data[name+"_path"]))), Content: content}, nil
}
