package kubeapi_test

import (
	"encoding/json"
	"encoding/pem"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"go.uber.org/goleak"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"

	"github.com/ambipod/ambipod/pkg/kubeapi"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// serve answers like an API server that has the node n1 and lets only the bearer of
// a token in. What is sent to it as a patch appears in patches.
func serve(t *testing.T) (kubeconfig string, patches chan string) {
	t.Helper()
	patches = make(chan string, 1)
	reply := func(w http.ResponseWriter, code int, v any) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(code)
		if err := json.NewEncoder(w).Encode(v); err != nil {
			t.Error(err)
		}
	}
	refuse := func(w http.ResponseWriter, err *apierrors.StatusError) {
		status := err.Status()
		status.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}
		reply(w, int(status.Code), status)
	}
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Header.Get("Authorization") != "Bearer secret":
			refuse(w, apierrors.NewUnauthorized("who are you?"))
		case r.URL.Path != "/api/v1/nodes/n1":
			refuse(w, apierrors.NewGenericServerResponse(http.StatusNotFound, r.Method, metav1.Unversioned.WithResource("nodes").GroupResource(), r.URL.Path, "", 0, true))
		case r.Method == http.MethodPatch && r.Header.Get("Content-Type") == "application/merge-patch+json":
			body, err := io.ReadAll(r.Body)
			if err != nil {
				t.Error(err)
			}
			patches <- string(body)
			fallthrough
		default:
			reply(w, http.StatusOK, map[string]any{
				"apiVersion": "v1", "kind": "Node", "metadata": map[string]any{"name": "n1"},
				"status": map[string]any{"runtimeHandlers": []any{map[string]any{"name": "vm"}}},
			})
		}
	}))
	t.Cleanup(server.Close)
	config := api.NewConfig()
	config.Clusters["c"] = &api.Cluster{
		Server:                   server.URL,
		CertificateAuthorityData: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}),
	}
	config.AuthInfos["u"] = &api.AuthInfo{Token: "secret"}
	config.Contexts["x"] = &api.Context{Cluster: "c", AuthInfo: "u"}
	config.CurrentContext = "x"
	kubeconfig = filepath.Join(t.TempDir(), "kubeconfig")
	if err := clientcmd.WriteToFile(*config, kubeconfig); err != nil {
		t.Fatal(err)
	}
	return kubeconfig, patches
}

func TestNodes(t *testing.T) {
	kubeconfig, patches := serve(t)
	client, err := kubeapi.New(kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Client.CloseIdleConnections)
	nodes := kubeapi.Nodes{Client: client}

	node, err := nodes.Get(t.Context(), "n1")
	if err != nil || node.Name != "n1" || len(node.Status.RuntimeHandlers) != 1 {
		t.Errorf("n1 is %+v, error %v", node, err)
	}
	if _, err := nodes.Get(t.Context(), "n2"); !apierrors.IsNotFound(err) {
		t.Errorf("a node that does not exist: %v", err)
	}
	const patch = `{"metadata":{"labels":{"a":"b"}}}`
	if err := nodes.Merge(t.Context(), "n1", []byte(patch)); err != nil {
		t.Fatal(err)
	}
	if got := <-patches; got != patch {
		t.Errorf("the server got %s", got)
	}
}

func TestBadKubeconfig(t *testing.T) {
	for name, file := range map[string]string{"missing": filepath.Join(t.TempDir(), "none"), "no pod": "", "in no cluster": kubeapi.InCluster} {
		if _, err := kubeapi.New(file); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
