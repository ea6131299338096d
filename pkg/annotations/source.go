package annotations

import (
	"errors"
	"path"
	"strings"
)

// Source names data that kubelet has put on the node for the pod, or else an object of
// the pod's namespace.
type Source struct {
	// Kind is "configmap" or "secret"; Volume is the name of the pod's volume that
	// holds it, or of the object. Both are empty if Path is set.
	Kind, Volume string
	// Path is where the container mounts the volume, or a file in it.
	Path string
	// Key is one entry of the volume; "" for all.
	Key string
}

const sourceForms = "`configmap/NAME` or `secret/NAME`, where the container mounts a volume of the same name that holds it, or the object of the pod's namespace that has the name; " +
	"or the absolute path at which the container mounts the volume"

// sourceRights is said in all annotations that Virtlet answered by asking the API server.
const sourceRights = " What the pod mounts is read from there and needs no right of the node's. An object that the pod does not mount is read from the API " +
	"server if vmruntime was started with `--kubeconfig`."

func parseSource(value string, keyed bool) (Source, error) {
	if path.IsAbs(value) {
		return Source{Path: path.Clean(value)}, nil
	}
	parts := strings.Split(value, "/")
	most := 2
	if keyed {
		most = 3
	}
	if len(parts) < 2 || len(parts) > most || (parts[0] != "configmap" && parts[0] != "secret") || strings.Contains(value+"/", "//") {
		return Source{}, errors.New("names no volume")
	}
	source := Source{Kind: parts[0], Volume: parts[1]}
	if len(parts) == most && keyed {
		source.Key = parts[2]
	}
	return source, nil
}
