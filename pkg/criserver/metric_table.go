package criserver

import (
	"slices"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ambipod/ambipod/pkg/cgroup"
	"github.com/ambipod/ambipod/pkg/libvirttools"
	"github.com/ambipod/ambipod/pkg/network"
)

// Labels of metrics. The names, helps and labels of metrics that begin with
// "container_" are cAdvisor's, in containerd's order: kubelet takes both runtimes'
// values by the descriptors that it read first.
var (
	baseLabels    = []string{"pod", "namespace", "container", "id", "image"}
	nicLabels     = append(slices.Clip(baseLabels), "interface")
	diskLabels    = append(slices.Clip(baseLabels), "device")
	failureLabels = append(slices.Clip(baseLabels), "failure_type", "scope")
)

const (
	counter = runtimeapi.MetricType_COUNTER
	gauge   = runtimeapi.MetricType_GAUGE
)

// metric is one row of a table: what a number is called and where it comes from.
type metric[Source any] struct {
	name, help string
	kind       runtimeapi.MetricType
	value      func(Source) uint64
}

// reading is what is known of a running VM at a moment.
type reading struct {
	vm        container
	now       time.Time
	resources *runtimeapi.LinuxContainerResources
	group     cgroup.Stats
	files     uint64 // open descriptors of its processes
}

var vmMetrics = []metric[reading]{
	{"container_last_seen", "Last time a container was seen by the exporter", gauge, func(r reading) uint64 { return unixSeconds(r.now) }},
	{"container_start_time_seconds", "Start time of the container since unix epoch in seconds", gauge, func(r reading) uint64 { return unixSeconds(r.vm.StartedAt) }},

	{"container_cpu_usage_seconds_total", "Cumulative CPU time consumed in seconds.", counter, func(r reading) uint64 { return seconds(r.group.CPU) }},
	{"container_cpu_user_seconds_total", "Cumulative user CPU time consumed in seconds.", counter, func(r reading) uint64 { return seconds(r.group.UserCPU) }},
	{"container_cpu_system_seconds_total", "Cumulative system CPU time consumed in seconds.", counter, func(r reading) uint64 { return seconds(r.group.SystemCPU) }},
	{"container_cpu_cfs_periods_total", "Number of elapsed enforcement period intervals.", counter, func(r reading) uint64 { return r.group.Periods }},
	{"container_cpu_cfs_throttled_periods_total", "Number of CPU throttled period intervals.", counter, func(r reading) uint64 { return r.group.ThrottledPeriods }},
	{"container_cpu_cfs_throttled_seconds_total", "Total time duration the container has been throttled.", counter, func(r reading) uint64 { return seconds(r.group.Throttled) }},

	{"container_memory_usage_bytes", "Current memory usage in bytes, including all memory regardless of when it was accessed", gauge, func(r reading) uint64 { return r.group.Memory }},
	{"container_memory_working_set_bytes", "Amount of memory that is actively used by the container, excluding cached memory.", gauge, func(r reading) uint64 { return r.group.WorkingSet }},
	{"container_memory_rss", "Size of RSS in bytes, total anonymous memory and swap cache memory used by the container.", gauge, func(r reading) uint64 { return r.group.RSS }},
	{"container_memory_cache", "Number of bytes of memory used by the container for caching purposes.", gauge, func(r reading) uint64 { return r.group.Cache }},
	{"container_memory_mapped_file", "Size of container's memory mapped files in bytes.", gauge, func(r reading) uint64 { return r.group.MappedFile }},
	{"container_memory_kernel_usage", "Size of kernel memory allocated to the container in bytes, includes page tables, socket buffers...", gauge, func(r reading) uint64 { return r.group.Kernel }},
	{"container_memory_swap", "Container swap usage in bytes.", gauge, func(r reading) uint64 { return r.group.Swap }},
	{"container_memory_max_usage_bytes", "Maximum container memory usage recorded in bytes", gauge, func(r reading) uint64 { return r.group.MaxMemory }},
	{"container_memory_failcnt", "Number of times container memory usage has hit its upper memory limit", counter, func(r reading) uint64 { return r.group.LimitHits }},
	{"container_memory_total_active_file_bytes", "Amount of cache memory bytes, in use by the container, in file on disk.", gauge, func(r reading) uint64 { return r.group.ActiveFile }},
	{"container_memory_total_inactive_file_bytes", "Amount of inactive cache memory bytes, for the container, in file on disk.", gauge, func(r reading) uint64 { return r.group.InactiveFile }},
	{"container_oom_events_total", "Count of out of memory events observed for the container", counter, func(r reading) uint64 { return r.group.OOMKills }},

	{"container_processes", "Number of processes running inside the container.", gauge, func(r reading) uint64 { return r.group.Processes }},
	{"container_threads", "Number of threads running inside the container", gauge, func(r reading) uint64 { return r.group.Threads }},
	{"container_threads_max", "Maximum number of threads allowed inside the container, infinity if value is zero", gauge, func(r reading) uint64 { return r.group.MaxThreads }},
	{"container_file_descriptors", "Number of open file descriptors for the container.", gauge, func(r reading) uint64 { return r.files }},

	{"container_spec_cpu_period", "CPU period of the container", gauge, func(r reading) uint64 { return positive(r.resources.GetCpuPeriod()) }},
	{"container_spec_cpu_shares", "CPU share of the container", gauge, func(r reading) uint64 { return positive(r.resources.GetCpuShares()) }},
	{"container_spec_memory_limit_bytes", "Memory limit for the container", gauge, func(r reading) uint64 { return positive(r.resources.GetMemoryLimitInBytes()) }},

	{"ambipod_guest_reboots_total", "Number of times that the guest has rebooted itself since its container was started", counter, func(r reading) uint64 { return r.vm.Reboots }},
}

// failureMetrics tell apart by labels what they count.
var failureMetrics = []struct {
	metric[cgroup.Stats]
	failure string
}{
	{metric[cgroup.Stats]{"container_memory_failures_total", "Cumulative count of memory allocation failures.", counter, func(s cgroup.Stats) uint64 { return s.PageFaults }}, "pgfault"},
	{metric[cgroup.Stats]{"container_memory_failures_total", "Cumulative count of memory allocation failures.", counter, func(s cgroup.Stats) uint64 { return s.MajorPageFaults }}, "pgmajfault"},
}

// space is the file system that VMs' disks are on, and what one VM's take of it.
type space struct{ used, bytes, inodes, freeInodes uint64 }

var spaceMetrics = []metric[space]{
	{"container_fs_usage_bytes", "Number of bytes that are consumed by the container on this filesystem.", gauge, func(s space) uint64 { return s.used }},
	{"container_fs_limit_bytes", "Number of bytes that can be consumed by the container on this filesystem.", gauge, func(s space) uint64 { return s.bytes }},
	{"container_fs_inodes_total", "Number of Inodes", gauge, func(s space) uint64 { return s.inodes }},
	{"container_fs_inodes_free", "Number of available Inodes", gauge, func(s space) uint64 { return s.freeInodes }},
}

var diskMetrics = []metric[libvirttools.DiskStats]{
	{"container_fs_reads_bytes_total", "Cumulative count of bytes read", counter, func(d libvirttools.DiskStats) uint64 { return d.ReadBytes }},
	{"container_fs_reads_total", "Cumulative count of reads completed", counter, func(d libvirttools.DiskStats) uint64 { return d.ReadRequests }},
	{"container_fs_writes_bytes_total", "Cumulative count of bytes written", counter, func(d libvirttools.DiskStats) uint64 { return d.WriteBytes }},
	{"container_fs_writes_total", "Cumulative count of writes completed", counter, func(d libvirttools.DiskStats) uint64 { return d.WriteRequests }},
}

var guestMetrics = []metric[libvirttools.GuestMemory]{
	{"ambipod_guest_memory_total_bytes", "Memory that the guest's kernel manages, as the guest says", gauge, func(m libvirttools.GuestMemory) uint64 { return m.Total }},
	{"ambipod_guest_memory_unused_bytes", "Memory that the guest uses for nothing, not even caches, as the guest says", gauge, func(m libvirttools.GuestMemory) uint64 { return m.Unused }},
	{"ambipod_guest_memory_usable_bytes", "Memory that the guest can give to programs without swapping, as the guest says", gauge, func(m libvirttools.GuestMemory) uint64 { return m.Usable }},
	{"ambipod_guest_memory_disk_caches_bytes", "Memory that the guest uses for caches of its disks, as the guest says", gauge, func(m libvirttools.GuestMemory) uint64 { return m.DiskCaches }},
}

var nicMetrics = []metric[network.Counters]{
	{"container_network_receive_bytes_total", "Cumulative count of bytes received", counter, func(c network.Counters) uint64 { return c.RxBytes }},
	{"container_network_receive_packets_total", "Cumulative count of packets received", counter, func(c network.Counters) uint64 { return c.RxPackets }},
	{"container_network_receive_packets_dropped_total", "Cumulative count of packets dropped while receiving", counter, func(c network.Counters) uint64 { return c.RxDropped }},
	{"container_network_receive_errors_total", "Cumulative count of errors encountered while receiving", counter, func(c network.Counters) uint64 { return c.RxErrors }},
	{"container_network_transmit_bytes_total", "Cumulative count of bytes transmitted", counter, func(c network.Counters) uint64 { return c.TxBytes }},
	{"container_network_transmit_packets_total", "Cumulative count of packets transmitted", counter, func(c network.Counters) uint64 { return c.TxPackets }},
	{"container_network_transmit_packets_dropped_total", "Cumulative count of packets dropped while transmitting", counter, func(c network.Counters) uint64 { return c.TxDropped }},
	{"container_network_transmit_errors_total", "Cumulative count of errors encountered while transmitting", counter, func(c network.Counters) uint64 { return c.TxErrors }},
}

// describe appends the descriptors of a table's metrics.
func describe[S any](to []*runtimeapi.MetricDescriptor, table []metric[S], labels []string) []*runtimeapi.MetricDescriptor {
	for _, m := range table {
		to = append(to, &runtimeapi.MetricDescriptor{Name: m.name, Help: m.help, LabelKeys: labels})
	}
	return to
}

// measure appends the values of a table's metrics. They have no time: they are
// gathered when they are asked for.
func measure[S any](to []*runtimeapi.Metric, table []metric[S], source S, labels []string) []*runtimeapi.Metric {
	for _, m := range table {
		to = append(to, &runtimeapi.Metric{Name: m.name, MetricType: m.kind, LabelValues: labels, Value: number(m.value(source))})
	}
	return to
}

func seconds(d time.Duration) uint64 { return positive(int64(d / time.Second)) }

func unixSeconds(at time.Time) uint64 { return positive(at.Unix()) }

func positive(n int64) uint64 { return uint64(max(n, 0)) }
