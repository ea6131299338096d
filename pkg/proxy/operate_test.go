package proxy

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ambipod/ambipod/pkg/redact"
	"github.com/ambipod/ambipod/pkg/statushttp"
)

func scrape(t *testing.T, p *Proxy, path string) string {
	t.Helper()
	recorder := httptest.NewRecorder()
	statushttp.Handler(p.statusPages()).ServeHTTP(recorder, httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, nil))
	return fmt.Sprint(recorder.Code, "\n", recorder.Body.String())
}

func TestMetrics(t *testing.T) {
	s := newSetup(t)
	s.populate(t)
	s.vm.stop()
	s.wantWhole(t)
	_, err := s.ContainerStatus(ctx(t), &runtimeapi.ContainerStatusRequest{ContainerId: vmID})
	wantCode(t, err, codes.Unavailable)
	if err := s.conn.Invoke(ctx(t), "/made.up/Method", &runtimeapi.VersionRequest{}, &runtimeapi.VersionResponse{}); err == nil {
		t.Error("a made-up method is answered")
	}
	text := scrape(t, s.proxy, "/metrics")
	for _, line := range []string{
		`criproxy_calls_total{code="OK",method="RunPodSandbox",runtime="vm"} 1`,
		`criproxy_calls_total{code="OK",method="RunPodSandbox",runtime="containerd"} 1`,
		`criproxy_calls_total{code="Unavailable",method="ContainerStatus",runtime="vm"} 1`,
		`criproxy_call_seconds_count{method="CreateContainer",runtime="vm"} 1`,
		`criproxy_calls_in_flight{method="CreateContainer",runtime="vm"} 0`,
		`criproxy_stale_lists_total{method="ListContainers",runtime="vm"} 1`,
		`criproxy_runtime_connected{runtime="containerd"} 1`,
		`criproxy_runtime_connected{runtime="vm"} 0`,
	} {
		if !strings.Contains(text, line+"\n") {
			t.Errorf("no line %s", line)
		}
	}
	if strings.Contains(text, "made.up") {
		t.Error("callers can make up label values")
	}
	if !strings.Contains(text, `criproxy_stale_list_age_seconds{method="ListContainers",runtime="vm"} `) {
		t.Error("no staleness")
	}
}

func TestHealth(t *testing.T) {
	s := newSetup(t)
	for path, want := range map[string]string{"/healthz": "200\nok\n", "/readyz": "200\nok\n"} {
		if got := scrape(t, s.proxy, path); got != want {
			t.Errorf("%s: %q, want %q", path, got, want)
		}
	}
	s.def.stop()
	eventually(t, "readyz tells that the default is away", func() bool {
		return strings.HasPrefix(scrape(t, s.proxy, "/readyz"), "503\nruntime containerd does not answer")
	})
	if got := scrape(t, s.proxy, "/healthz"); got != "200\nok\n" {
		t.Errorf("healthz: %q", got)
	}
}

func TestMetricsOnAUnixSocket(t *testing.T) {
	s := newSetup(t)
	socket := filepath.Join(s.dir, "metrics.sock")
	running, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.proxy.ServeMetrics(running, "unix:"+socket) }()
	eventually(t, "the socket is private", func() bool {
		info, err := os.Stat(socket)
		return err == nil && info.Mode().Perm() == 0o600
	})
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if err := s.proxy.ServeMetrics(t.Context(), "999.0.0.1:1"); err == nil {
		t.Error("an impossible address is accepted")
	}
}

// A restarted proxy knows what the old one knew, though a runtime is away.
func TestMemorySurvivesRestart(t *testing.T) {
	s := newSetup(t)
	_, container := s.populate(t)
	s.vm.stop()
	s.stop()
	s.startProxy(t)
	s.wantWhole(t)
	_, err := s.ContainerStatus(ctx(t), &runtimeapi.ContainerStatusRequest{ContainerId: container})
	wantCode(t, err, codes.Unavailable)
	s.stop()

	// Both runtimes away: still whole, and at once.
	s.def.stop()
	s.startProxy(t)
	started := time.Now()
	s.wantWhole(t)
	if took := time.Since(started); took > atOnce {
		t.Errorf("lists took %v", took)
	}
	for _, path := range []string{filepath.Join(s.config.StateDir, "known"), filepath.Join(s.config.StateDir, "known", "vm.ListContainers")} {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s is open to others: %v", path, info.Mode())
		}
	}
}

// A killed proxy writes nothing more, so lists are saved while it runs.
func TestMemoryIsSavedWithoutAGoodbye(t *testing.T) {
	s := newSetup(t)
	sandbox, _ := s.populate(t)
	path := filepath.Join(s.config.StateDir, "known", "vm.ListPodSandbox")
	eventually(t, "the new sandbox is in the file", func() bool {
		text, err := os.ReadFile(path)
		return err == nil && strings.Contains(string(text), sandbox)
	})
	must[*runtimeapi.RemovePodSandboxResponse](t)(s.RemovePodSandbox(ctx(t), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: sandbox}))
	eventually(t, "the removed sandbox is not in the file", func() bool {
		text, err := os.ReadFile(path)
		return err == nil && !strings.Contains(string(text), sandbox)
	})
}

// A file that is damaged or of another time is no knowledge, and is replaced.
func TestForeignFilesAreIgnored(t *testing.T) {
	for name, damage := range map[string]func([]byte) []byte{
		"empty":          func([]byte) []byte { return nil },
		"cut":            func(text []byte) []byte { return text[:len(text)-1] },
		"flipped bit":    func(text []byte) []byte { text[len(text)-1] ^= 1; return text },
		"earlier boot":   func(text []byte) []byte { text[len(storeMagic)] ^= 1; return text },
		"other version":  func(text []byte) []byte { text[0] ^= 1; return text },
		"another prefix": func(text []byte) []byte { return []byte(strings.Replace(string(text), `"vm."`, `"wm."`, 1)) },
	} {
		t.Run(name, func(t *testing.T) {
			s := newSetup(t)
			s.populate(t)
			s.stop()
			s.vm.stop()
			path := filepath.Join(s.config.StateDir, "known", "vm.ListContainers")
			text := must[[]byte](t)(os.ReadFile(path))
			if err := os.WriteFile(path, damage(text), 0o600); err != nil {
				t.Fatal(err)
			}
			s.startProxy(t)
			if got := len(must[*runtimeapi.ListContainersResponse](t)(s.ListContainers(ctx(t), &runtimeapi.ListContainersRequest{})).GetContainers()); got != 1 {
				t.Errorf("%d containers, want the default's only", got)
			}
			if !strings.Contains(s.log.String(), "go on without a saved list") {
				t.Error("the log does not tell")
			}
			s.vm.start(t)
			s.waitConnected(t, "vm")
			s.wantWhole(t)
		})
	}
}

// Reload adds, re-points and removes runtimes while calls go on; none fails, and
// a call that has begun on a removed runtime ends as it would have.
func TestReloadUnderLoad(t *testing.T) {
	s := newSetup(t)
	s.populate(t)
	release := make(chan struct{})
	s.vm.onCall(func(_ context.Context, method string) error {
		if method == "StopContainer" {
			<-release
		}
		return nil
	})
	long := make(chan error, 1)
	go func() {
		_, err := s.StopContainer(context.Background(), &runtimeapi.StopContainerRequest{ContainerId: "vm." + s.vm.containers[0].GetId()})
		long <- err
	}()
	eventually(t, "the long call has begun", func() bool { return len(s.vm.got("StopContainer")) == 1 })
	stop := make(chan struct{})
	loaded := make(chan error, 1)
	go func() {
		for {
			select {
			case <-stop:
				loaded <- nil
				return
			default:
			}
			if _, err := s.Version(context.Background(), &runtimeapi.VersionRequest{}); err != nil {
				loaded <- err
				return
			}
		}
	}()
	other := newTestRuntime(s.dir, "other")
	other.start(t)
	fill(other, 1)
	alone := *s.config
	alone.Backends = s.config.Backends[:1]
	withOther := *s.config
	withOther.Backends = append(slices.Clone(s.config.Backends), BackendConfig{Name: "other", Socket: other.socket, IDPrefix: "o."})
	repointed := withOther
	repointed.Backends = slices.Clone(withOther.Backends)
	repointed.Backends[1].Socket, repointed.Backends[2].Socket = other.socket, s.vm.socket
	for range 3 {
		for config, want := range map[*Config]int{&alone: 1, &withOther: 3, &repointed: 3, s.config: 2} {
			if err := s.proxy.Reload(config); err != nil {
				t.Fatal(err)
			}
			eventually(t, "the new view lists what it should", func() bool {
				return len(must[*runtimeapi.ListContainersResponse](t)(s.ListContainers(ctx(t), &runtimeapi.ListContainersRequest{})).GetContainers()) == want
			})
		}
	}
	close(stop)
	if err := <-loaded; err != nil {
		t.Errorf("a call failed during a reload: %v", err)
	}
	if err := s.proxy.Reload(&alone); err != nil {
		t.Fatal(err)
	}
	close(release)
	if err := <-long; err != nil {
		t.Errorf("the long call failed: %v", err)
	}
	eventually(t, "metrics of the removed runtime are gone", func() bool { return !strings.Contains(scrape(t, s.proxy, "/metrics"), `runtime="vm"`) })
}

// A change of routing alone keeps the connection and what is remembered.
func TestReloadOfRoutingKeepsTheConnection(t *testing.T) {
	s := newSetup(t)
	s.populate(t)
	before := s.backend("vm")
	changed := *s.config
	changed.Backends = slices.Clone(changed.Backends)
	changed.Backends[1].ImagePrefixes = []string{"disks.example.com"}
	if err := s.proxy.Reload(&changed); err != nil {
		t.Fatal(err)
	}
	if s.backend("vm") != before {
		t.Error("the connection was made anew")
	}
	must[*runtimeapi.PullImageResponse](t)(s.images.PullImage(ctx(t), pull(image("disks.example.com/debian"), nil)))
	if len(s.vm.got("PullImage")) != 1 {
		t.Error("the new prefix does not route")
	}
}

// A stopping proxy lets running calls finish.
func TestStopWaitsForRunningCalls(t *testing.T) {
	s := newSetup(t)
	release := make(chan struct{})
	s.def.onCall(func(_ context.Context, method string) error {
		if method == "StopContainer" {
			<-release
		}
		return nil
	})
	fill(s.def, 1)
	result := make(chan error, 1)
	go func() {
		_, err := s.StopContainer(context.Background(), &runtimeapi.StopContainerRequest{ContainerId: s.def.containers[0].GetId()})
		result <- err
	}()
	eventually(t, "the call has begun", func() bool { return len(s.def.got("StopContainer")) == 1 })
	stopped := make(chan struct{})
	go func() {
		s.stop()
		close(stopped)
	}()
	eventually(t, "no new caller gets in", func() bool {
		_, err := os.Stat(s.config.Listen)
		return os.IsNotExist(err)
	})
	close(release)
	if err := <-result; err != nil {
		t.Errorf("the running call failed: %v", err)
	}
	<-stopped
}

// The request log shows what happened, and no secret.
func TestRequestLogHidesSecrets(t *testing.T) {
	s := newSetup(t)
	const secret = "hunter2"
	_, _ = s.images.PullImage(ctx(t), &runtimeapi.PullImageRequest{
		Image: image("vm.ambipod.io/debian"), Auth: &runtimeapi.AuthConfig{Username: "me", Password: secret, Auth: secret, IdentityToken: secret, RegistryToken: secret},
		SandboxConfig: pod("vm.ambipod.io/cloud-init-user-data", secret, "io.kubernetes.pod.uid", "u-1"),
	})
	_, _ = s.CreateContainer(ctx(t), &runtimeapi.CreateContainerRequest{PodSandboxId: vmID, Config: &runtimeapi.ContainerConfig{
		Image: image("vm.ambipod.io/debian"), Envs: []*runtimeapi.KeyValue{{Key: "TOKEN", Value: []byte(secret)}}, Command: []string{"sh", "-c", secret}, Args: []string{"a", secret},
	}})
	_, _ = s.ExecSync(ctx(t), &runtimeapi.ExecSyncRequest{ContainerId: vmID, Cmd: []string{"login", secret}})
	_, _ = s.ExecSync(ctx(t), &runtimeapi.ExecSyncRequest{ContainerId: "no", Cmd: []string{"login", secret}})
	text := s.log.String()
	if strings.Contains(text, secret) {
		t.Errorf("the log shows a secret:\n%s", text)
	}
	for _, visible := range []string{"PullImage", "vm.ambipod.io/debian", "TOKEN", "u-1", "method=CreateContainer runtime=vm", redact.Hidden, "login"} {
		if !strings.Contains(text, visible) {
			t.Errorf("the log does not show %s", visible)
		}
	}
}
