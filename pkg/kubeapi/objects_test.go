package kubeapi_test

import (
	"encoding/json"
	"maps"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"

	"github.com/ambipod/ambipod/pkg/kubeapi"
)

// objectServer has one ConfigMap and one Secret in the namespace ns, and another Secret
// that nobody may read.
func objectServer(t *testing.T) (kubeconfig string) {
	t.Helper()
	objects := map[string]any{
		"/api/v1/namespaces/ns/configmaps/c": corev1.ConfigMap{
			TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "ConfigMap"},
			Data:     map[string]string{"text": "a\n"}, BinaryData: map[string][]byte{"bytes": {0, 1}},
		},
		"/api/v1/namespaces/ns/secrets/s": corev1.Secret{
			TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Secret"}, Data: map[string][]byte{"key": []byte("hidden")},
		},
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		object, found := objects[r.URL.Path]
		code := http.StatusOK
		if !found || r.Method != http.MethodGet {
			err := apierrors.NewNotFound(schema.GroupResource{Resource: "x"}, filepath.Base(r.URL.Path))
			if strings.HasSuffix(r.URL.Path, "/forbidden") {
				err = apierrors.NewForbidden(schema.GroupResource{Resource: "secrets"}, "forbidden", nil)
			}
			status := err.Status()
			status.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}
			object, code = status, int(status.Code)
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(code)
		if err := json.NewEncoder(w).Encode(object); err != nil {
			t.Error(err)
		}
	}))
	t.Cleanup(server.Close)
	return kubeconfigFor(t, server.URL)
}

func kubeconfigFor(t *testing.T, url string) string {
	t.Helper()
	config := api.NewConfig()
	config.Clusters["c"] = &api.Cluster{Server: url}
	config.Contexts["x"] = &api.Context{Cluster: "c"}
	config.CurrentContext = "x"
	path := filepath.Join(t.TempDir(), "kubeconfig")
	if err := clientcmd.WriteToFile(*config, path); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestObjects(t *testing.T) {
	objects := kubeapi.Objects{Kubeconfig: objectServer(t)}
	for object, want := range map[string]map[string]string{
		"configmap/c": {"text": "a\n", "bytes": "\x00\x01"},
		"secret/s":    {"key": "hidden"},
	} {
		kind, name, _ := strings.Cut(object, "/")
		got, err := objects.Data(t.Context(), kind, "ns", name)
		if err != nil || !maps.EqualFunc(got, want, func(a []byte, b string) bool { return string(a) == b }) {
			t.Errorf("%s: %q, %v", object, got, err)
		}
	}
}

func TestObjectsThatCannotBeRead(t *testing.T) {
	kubeconfig := objectServer(t)
	for name, c := range map[string]struct {
		kubeconfig, kind, namespace, name string
		class                             func(error) bool
		words                             []string
	}{
		"no kubeconfig":      {"", "secret", "ns", "s", errdefs.IsFailedPrecondition, []string{"secret ns/s", "--kubeconfig", "mount it"}},
		"missing kubeconfig": {"/no/such/file", "secret", "ns", "s", errdefs.IsInvalidArgument, []string{"/no/such/file", "secret ns/s"}},
		"missing":            {kubeconfig, "secret", "ns", "t", errdefs.IsFailedPrecondition, []string{"secret ns/t does not exist"}},
		"other namespace":    {kubeconfig, "configmap", "other", "c", errdefs.IsFailedPrecondition, []string{"configmap other/c does not exist"}},
		"forbidden":          {kubeconfig, "secret", "ns", "forbidden", errdefs.IsFailedPrecondition, []string{"secret ns/forbidden", "mount it in the pod"}},
		"no server":          {kubeconfigFor(t, "http://127.0.0.1:1"), "secret", "ns", "s", errdefs.IsUnavailable, []string{"secret ns/s"}},
	} {
		data, err := kubeapi.Objects{Kubeconfig: c.kubeconfig}.Data(t.Context(), c.kind, c.namespace, c.name)
		if !c.class(err) || slices.ContainsFunc(c.words, func(word string) bool { return !strings.Contains(err.Error(), word) }) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v, want one line with %q", name, err, c.words)
		}
		if len(data) > 0 {
			t.Errorf("%s: got data %v", name, data)
		}
	}
}
