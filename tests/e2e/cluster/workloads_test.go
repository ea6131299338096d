//go:build e2e

package cluster

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

// release is what the guests of a workload's newest pod say their release is.
func (s space) release(t *testing.T, of, want string) {
	t.Helper()
	if got := strings.TrimSpace(s.inGuest(t, of, "echo $RELEASE")); got != want {
		t.Errorf("%s has release %q, want %q", of, got, want)
	}
}

// TestDeploymentOfVMs scales, updates and rolls back.
func TestDeploymentOfVMs(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	const shop = "deployment/shop"
	s.apply(t, "deployment.yaml")
	s.rolledOut(t, shop)
	s.kubectl(t, "scale", shop, "--replicas=2")
	s.rolledOut(t, shop)
	s.kubectl(t, "scale", shop, "--replicas=1")
	s.rolledOut(t, shop)
	s.podsLeft(t, "app=shop", 1)
	s.release(t, shop, "1")

	s.kubectl(t, "set", "env", shop, "RELEASE=2")
	s.rolledOut(t, shop)
	s.podsLeft(t, "app=shop", 1)
	s.release(t, shop, "2")

	s.kubectl(t, "rollout", "undo", shop)
	s.rolledOut(t, shop)
	s.podsLeft(t, "app=shop", 1)
	s.release(t, shop, "1")
}

// TestReplicaSetOfVMs loses a VM and gets another.
func TestReplicaSetOfVMs(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	const workers = "replicaset/workers"
	ready := func(n int) {
		t.Helper()
		s.wait(t, fmt.Sprintf("jsonpath={.status.readyReplicas}=%d", n), workers)
	}
	s.apply(t, "replicaset.yaml")
	ready(2)
	before := s.names(t, "pods", "app=workers")
	s.kubectl(t, "delete", before[0])
	s.podsLeft(t, "app=workers", 2)
	ready(2)
	after := s.names(t, "pods", "app=workers")
	if strings.Contains(strings.Join(after, " "), before[0]) || !strings.Contains(strings.Join(after, " "), before[1]) {
		t.Errorf("after %s was deleted there are %q, want %s and a new one", before[0], after, before[1])
	}
	s.kubectl(t, "scale", workers, "--replicas=0")
	s.podsLeft(t, "app=workers", 0)
}

// TestStatefulSetOfVMs keeps names and data over pods.
func TestStatefulSetOfVMs(t *testing.T) {
	t.Parallel()
	claimsGo(t)
	s := newSpace(t)
	const db, first = "statefulset/db", "pod/db-0"
	s.apply(t, "statefulset.yaml")
	s.rolledOut(t, db)
	s.inGuest(t, first, "hostname >/data/made-by")
	uid := func() string { return s.kubectl(t, "get", first, "-o", "jsonpath={.metadata.uid}") }
	keeps := func(when, old string) {
		t.Helper()
		if old == uid() {
			t.Errorf("%s: db-0 is the same pod", when)
		}
		if got := s.inGuest(t, first, "cat /data/made-by && echo and && hostname"); got != "db-0\nand\ndb-0\n" {
			t.Errorf("%s: data and hostname are %q", when, got)
		}
	}

	old := uid()
	s.kubectl(t, "scale", db, "--replicas=2")
	s.kubectl(t, "delete", first)
	s.rolledOut(t, db)
	keeps("after a deletion", old)
	if got := s.inGuest(t, "pod/db-1", "ls /data; hostname"); got != "db-1\n" {
		t.Errorf("data and hostname of the second VM: %q", got)
	}
	if page := s.inGuest(t, "pod/db-1", "wget -q -O - http://db-0.db."+s.name+".svc.cluster.local"); !strings.Contains(page, "Hello from db-0,") {
		t.Errorf("by the first VM's name the second reaches %q", page)
	}

	s.kubectl(t, "scale", db, "--replicas=1")
	s.podsLeft(t, "app=db", 1)
	old = uid()
	s.kubectl(t, "set", "env", db, "RELEASE=2")
	s.rolledOut(t, db)
	keeps("after an update", old)
	s.release(t, first, "2")

	old = uid()
	s.kubectl(t, "rollout", "undo", db)
	s.rolledOut(t, db)
	keeps("after a rollback", old)
	s.release(t, first, "1")
}

// TestDaemonSetOfVMs has one VM on each node that runs VMs.
func TestDaemonSetOfVMs(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	const agent = "daemonset/agent"
	s.apply(t, "daemonset.yaml")
	s.rolledOut(t, agent)
	s.kubectl(t, "set", "env", agent, "RELEASE=2")
	s.rolledOut(t, agent)
	s.release(t, agent, "2")
	s.kubectl(t, "rollout", "undo", agent)
	s.rolledOut(t, agent)
	s.release(t, agent, "1")
	nodes := s.kubectl(t, "get", "pods", "-l", "app=agent", "-o", "jsonpath={.items[*].spec.nodeName}")
	if nodes != shared.Node().Name() {
		t.Errorf("VMs are on %q, want one on %s", nodes, shared.Node().Name())
	}
}

// TestJobOfAVM ends when the guest powers itself off.
func TestJobOfAVM(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	s.apply(t, "job.yaml")
	s.wait(t, "condition=Complete", "job/sum")
	if log := s.kubectl(t, "logs", "job/sum"); !strings.Contains(log, "the sum is 42") {
		t.Errorf("the job's log lacks its result:\n%s", log)
	}
	s.kubectl(t, "delete", "job/sum")
	s.podsLeft(t, "job-name=sum", 0)
}

// TestCronJobOfVMs waits for the next minute's VM.
func TestCronJobOfVMs(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	s.apply(t, "cronjob.yaml")
	s.wait(t, "jsonpath={.status.lastSuccessfulTime}", "cronjob/report")
	job := s.names(t, "jobs", "")[0]
	if log := s.kubectl(t, "logs", job); !strings.Contains(log, "report of report-") {
		t.Errorf("the log of %s lacks its report:\n%s", job, log)
	}
}

// inGuest runs a script in the guest of a pod, by kubectl exec, once its agent
// answers.
func (s space) inGuest(t *testing.T, of, script string) string {
	t.Helper()
	var out string
	eventually(t, "a script runs in "+of, func(ctx context.Context) (err error) {
		out, err = shared.Kubectl(ctx, "--namespace", s.name, "exec", of, "--", "sh", "-c", script)
		return err
	})
	return out
}

// wait waits for a condition of an object, in kubectl's notation.
func (s space) wait(t *testing.T, condition, object string) {
	t.Helper()
	s.kubectl(t, "wait", "--for="+condition, object, "--timeout="+testTime.String())
}

// names lists objects with that label as KIND/NAME, the oldest first.
func (s space) names(t *testing.T, kind, label string) []string {
	t.Helper()
	return strings.Fields(s.kubectl(t, "get", kind, "-l", label, "--sort-by=.metadata.creationTimestamp", "-o", "name"))
}

// podsLeft waits until there are exactly that many pods with the label.
func (s space) podsLeft(t *testing.T, label string, want int) {
	t.Helper()
	eventually(t, fmt.Sprintf("%d pods have the label %s", want, label), func(ctx context.Context) error {
		out, err := shared.Kubectl(ctx, "--namespace", s.name, "get", "pods", "-l", label, "-o", "name")
		if err == nil && len(strings.Fields(out)) != want {
			err = fmt.Errorf("there are %q: %w", strings.Fields(out), errdefs.ErrUnavailable)
		}
		return err
	})
}

// claimsGo waits at the test's end, after its namespace has gone, until the
// volumes that were provisioned for it are gone too.
func claimsGo(t *testing.T) {
	t.Helper()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), downTime)
		defer cancel()
		own := "{range .items[?(@.spec.claimRef.namespace==\"" + spaceName(t) + "\")]}{.metadata.name} {end}"
		out, err := shared.Kubectl(ctx, "get", "persistentvolumes", "-o", "jsonpath="+own)
		for name := range strings.FieldsSeq(out) {
			if err == nil {
				_, err = shared.Kubectl(ctx, "wait", "--for=delete", "persistentvolume/"+name, "--timeout=60s")
			}
		}
		if err != nil {
			t.Error(err)
		}
	})
}
