package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ambipod/ambipod/pkg/kubeapi"
	"github.com/ambipod/ambipod/pkg/layout"
	"github.com/ambipod/ambipod/pkg/logging"
	"github.com/ambipod/ambipod/pkg/nodelabels"
)

// newNodeLabels is the verb of the DaemonSet's third container: it has the right to
// label its node and no privileges on it, vmruntime itself the reverse.
func newNodeLabels() *cobra.Command {
	var node, socket, kubeconfig string
	var every, patience time.Duration
	command := &cobra.Command{
		Use:   "node-labels --node NAME",
		Short: "Label this node while it can run VMs",
		Long: `node-labels keeps the labels vm.ambipod.io/capable, vm.ambipod.io/accel and extraRuntime on a node
while its vmruntime is ready and its kubelet uses criproxy, and removes them otherwise and when it is
told to stop. It uses the service account of the pod that it runs in, or a kubeconfig.`,
		Example: `  vmruntime node-labels --node worker-1 --kubeconfig /etc/kubernetes/kubelet.conf`,
		Args:    cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error {
			if node == "" {
				return usageError{errors.New("--node is missing: name the node as `kubectl get nodes` does")}
			}
			api, err := kubeapi.New(kubeconfig)
			if err != nil {
				return fmt.Errorf("reach the API server: %w", err)
			}
			runtime, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
			if err != nil {
				return fmt.Errorf("reach vmruntime: %w", err)
			}
			defer runtime.Close() //nolint:errcheck // the process ends
			keeper := nodelabels.Keeper{
				Node: node, Nodes: kubeapi.Nodes{Client: api}, Accel: accelerator(runtimeapi.NewRuntimeServiceClient(runtime)),
				Every: every, Patience: patience, Logger: logging.New(),
			}
			return keeper.Run(command.Context())
		},
	}
	command.Flags().StringVar(&node, "node", "", "name of this node")
	command.Flags().StringVar(&socket, "socket", layout.Layout{Run: layout.DefaultRun}.Socket(), "socket of vmruntime")
	command.Flags().StringVar(&kubeconfig, "kubeconfig", "", "how to reach the API server (default: as a pod's service account)")
	command.Flags().DurationVar(&every, "every", 10*time.Second, "time between two looks")
	command.Flags().DurationVar(&patience, "patience", 30*time.Second, "how long vmruntime may be away before the labels go")
	command.Flags().AddGoFlagSet(flag.CommandLine) // glog's
	return command
}

// accelerator asks a vmruntime what runs its VMs; an error is why it is not ready.
func accelerator(client runtimeapi.RuntimeServiceClient) func(context.Context) (string, error) {
	return func(ctx context.Context) (string, error) {
		response, err := client.Status(ctx, &runtimeapi.StatusRequest{Verbose: true})
		if err != nil {
			return "", fmt.Errorf("ask vmruntime: %w", err)
		}
		for _, condition := range response.GetStatus().GetConditions() {
			if !condition.GetStatus() {
				return "", fmt.Errorf("vmruntime: %s is false: %s", condition.GetType(), condition.GetMessage())
			}
		}
		var accel string
		if err := json.Unmarshal([]byte(response.GetInfo()["accelerator"]), &accel); err != nil {
			return "", fmt.Errorf("vmruntime does not tell its accelerator: %w", err)
		}
		return accel, nil
	}
}
