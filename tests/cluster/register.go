package cluster

import (
	"context"
	"embed"
	"encoding/base64"
	"fmt"
	"os"
	"strings"
)

// manifests are the rights of daemons that are no part of Kubernetes itself, and
// their places in the API. Each is called like its daemon.
//
//go:embed manifests
var manifests embed.FS

// register makes a daemon, a process of the node, known to the API server.
func (c *Cluster) register(ctx context.Context, daemon, port string) error {
	ca, err := os.ReadFile(c.certificate(authority))
	if err != nil {
		return fmt.Errorf("register %s: %w", daemon, err)
	}
	return c.applyManifest(ctx, daemon+".yaml", strings.NewReplacer("$ADDRESS", c.node.IP().String(), "$PORT", port,
		"$DNS", dnsIP().String(), "$CA", base64.StdEncoding.EncodeToString(ca)))
}

// applyManifest applies one of the manifests, filled in.
func (c *Cluster) applyManifest(ctx context.Context, file string, fill *strings.Replacer) error {
	manifest, err := manifests.ReadFile("manifests/" + file)
	if err != nil {
		return fmt.Errorf("register %s: %w", file, err)
	}
	if err := c.write(file, []byte(fill.Replace(string(manifest)))); err != nil {
		return err
	}
	_, err = c.Kubectl(ctx, "apply", "-f", c.path(file))
	return err
}
