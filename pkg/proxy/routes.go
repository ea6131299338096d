package proxy

// treatment is what the proxy does with the calls of one method.
type treatment uint8

const (
	// toOwner sends a call to the backend that its signals lead to, else to the default.
	toOwner treatment = iota
	// toEvery asks every backend that can own a match and merges the answers.
	toEvery
	// toEveryStream is toEvery for a method that answers with a stream of partial
	// lists; a backend without that method is asked by the list method instead.
	toEveryStream
	// toEachBackend tells every backend; the default's answer is the call's answer.
	toEachBackend
	// toSubscribers merges the backends' endless event streams.
	toSubscribers
)

// row is one line of the table: how a method is treated and which fields of its
// request are routing signals. Paths are dotted names of protobuf fields,
// several of them separated by a space.
type row struct {
	method  string
	do      treatment
	ids     string // sandbox and container IDs: their prefix names the owner
	image   string // ImageSpec: prefix of its name or ID, pod annotations, runtime handler
	pod     string // annotations of the pod
	handler string // runtime handler
	list    string // toEveryStream: the list method that stands in
	merge   merger // toEvery: how answers become one; nil joins the lists
	live    bool   // toEvery: the default's part is never taken from memory
	keep    bool   // toEvery: the last known answer survives a restart of the proxy
}

// runtimeRows is the whole behaviour of the proxy for runtime.v1.RuntimeService.
// A method that is not listed goes to the default backend byte for byte.
// All signals of a request must agree; empty ones say nothing; without any, a
// call goes to the default (toOwner) or to all backends (toEvery).
func runtimeRows() []row {
	return []row{
		{method: "Version"},
		{method: "RunPodSandbox", pod: "config.annotations", handler: "runtime_handler"},
		{method: "StopPodSandbox", ids: "pod_sandbox_id"},
		{method: "RemovePodSandbox", ids: "pod_sandbox_id"},
		{method: "PodSandboxStatus", ids: "pod_sandbox_id"},
		{method: "ListPodSandbox", do: toEvery, ids: "filter.id", keep: true},
		{method: "StreamPodSandboxes", do: toEveryStream, ids: "filter.id", list: "ListPodSandbox"},
		{method: "CreateContainer", ids: "pod_sandbox_id", image: "config.image"},
		{method: "StartContainer", ids: "container_id"},
		{method: "StopContainer", ids: "container_id"},
		{method: "RemoveContainer", ids: "container_id"},
		{method: "ListContainers", do: toEvery, ids: "filter.id filter.pod_sandbox_id", keep: true},
		{method: "StreamContainers", do: toEveryStream, ids: "filter.id filter.pod_sandbox_id", list: "ListContainers"},
		{method: "ContainerStatus", ids: "container_id"},
		{method: "UpdateContainerResources", ids: "container_id"},
		{method: "ReopenContainerLog", ids: "container_id"},
		{method: "ExecSync", ids: "container_id"},
		{method: "Exec", ids: "container_id"},
		{method: "Attach", ids: "container_id"},
		{method: "PortForward", ids: "pod_sandbox_id"},
		{method: "ContainerStats", ids: "container_id"},
		{method: "ListContainerStats", do: toEvery, ids: "filter.id filter.pod_sandbox_id"},
		{method: "StreamContainerStats", do: toEveryStream, ids: "filter.id filter.pod_sandbox_id", list: "ListContainerStats"},
		{method: "PodSandboxStats", ids: "pod_sandbox_id"},
		{method: "ListPodSandboxStats", do: toEvery, ids: "filter.id"},
		{method: "StreamPodSandboxStats", do: toEveryStream, ids: "filter.id", list: "ListPodSandboxStats"},
		{method: "UpdateRuntimeConfig", do: toEachBackend},
		{method: "Status", do: toEvery, merge: mergeStatus, live: true},
		{method: "CheckpointContainer", ids: "container_id"},
		{method: "CheckpointPod", ids: "pod_sandbox_id container_ids"},
		{method: "RestorePod", pod: "config.annotations", handler: "runtime_handler"},
		{method: "GetContainerEvents", do: toSubscribers},
		{method: "ListMetricDescriptors", do: toEvery, merge: mergeDescriptors},
		{method: "ListPodSandboxMetrics", do: toEvery},
		{method: "StreamPodSandboxMetrics", do: toEveryStream, list: "ListPodSandboxMetrics"},
		{method: "RuntimeConfig"},
		{method: "UpdatePodSandboxResources", ids: "pod_sandbox_id"},
	}
}

// imageRows is the same for runtime.v1.ImageService.
func imageRows() []row {
	return []row{
		{method: "ListImages", do: toEvery, image: "filter.image", keep: true},
		{method: "StreamImages", do: toEveryStream, image: "filter.image", list: "ListImages"},
		{method: "ImageStatus", image: "image"},
		{method: "PullImage", image: "image", pod: "sandbox_config.annotations"},
		{method: "RemoveImage", image: "image"},
		{method: "ImageFsInfo", do: toEvery, merge: mergeFilesystems},
	}
}

// objectIDs are the fields, in requests and answers alike, that hold the ID of a
// sandbox or container. Non-default backends' IDs are prefixed in every one.
func objectIDs() []string {
	return []string{
		"PodSandbox.id", "PodSandboxStatus.id", "PodSandboxFilter.id", "PodSandboxStatsFilter.id", "PodSandboxAttributes.id",
		"Container.id", "ContainerStatus.id", "ContainerFilter.id", "ContainerStatsFilter.id", "ContainerAttributes.id",
		"*.pod_sandbox_id", "*.container_id", "*.container_ids", "NamespaceOption.target_id",
	}
}

// imageIDs are the fields that hold the ID of an image: the same value for one
// image wherever it appears.
func imageIDs() []string {
	return []string{
		"Image.id", "PullImageResponse.image_ref", "ImageSpec.image_ref",
		"Container.image_ref", "Container.image_id", "ContainerStatus.image_ref", "ContainerStatus.image_id",
	}
}

// imageNames are the fields that hold either the name of an image, which passes
// unchanged, or its ID.
func imageNames() []string {
	return []string{"ImageSpec.image"}
}
