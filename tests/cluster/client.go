package cluster

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strings"

	"github.com/containerd/errdefs"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// Command is an unmodified kubectl that talks to the cluster.
func (c *Cluster) Command(ctx context.Context, args ...string) (*exec.Cmd, error) {
	kubectl, err := c.node.Tool("kubectl")
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, kubectl, args...)
	// Preferences of whoever runs this must not matter.
	cmd.Env = append(os.Environ(), "KUBECONFIG="+c.Kubeconfig(), "HOME="+c.dir, "KUBECTL_KUBERC=false")
	return cmd, nil
}

// Kubectl runs kubectl and returns what it printed. The error has the command and
// what kubectl said about it.
func (c *Cluster) Kubectl(ctx context.Context, args ...string) (string, error) {
	cmd, err := c.Command(ctx, args...)
	if err != nil {
		return "", err
	}
	var out, problems bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &problems
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(problems.String()))
	}
	return out.String(), nil
}

// Get reads an object of the API, such as
// /api/v1/namespaces/default/pods/web, into a struct of k8s.io/api. One that does
// not exist is errdefs.ErrNotFound.
func (c *Cluster) Get(ctx context.Context, path string, into any) error {
	config, err := clientcmd.BuildConfigFromFlags("", c.Kubeconfig())
	if err != nil {
		return fmt.Errorf("read kubeconfig of cluster: %w", err)
	}
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		return fmt.Errorf("connect to cluster: %w", err)
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, config.Host+path, http.NoBody)
	if err != nil {
		return fmt.Errorf("ask the API for %s: %w", path, err)
	}
	response, err := client.Do(request)
	if err != nil {
		return fmt.Errorf("ask the API for %s: %w", path, err)
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(response.Body)
	switch {
	case err != nil:
		return fmt.Errorf("read %s from the API: %w", path, err)
	case response.StatusCode == http.StatusNotFound:
		return fmt.Errorf("the API has no %s: %w", path, errdefs.ErrNotFound)
	case response.StatusCode != http.StatusOK:
		return fmt.Errorf("the API answers %d for %s: %s: %w", response.StatusCode, path, body, errdefs.ErrUnknown)
	}
	if err := json.Unmarshal(body, into); err != nil {
		return fmt.Errorf("read %s from the API: %w: %w", path, errdefs.ErrDataLoss, err)
	}
	return nil
}

// Env is what scripts need to know about the cluster beside what Node.Env says,
// as shell assignments, one a line.
func (c *Cluster) Env() (string, error) {
	kubectl, err := c.node.Tool("kubectl")
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("export KUBECONFIG='%s'\nKUBECTL='%s'\n", c.Kubeconfig(), kubectl), nil
}
