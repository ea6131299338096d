package redact

import (
	"strings"
	"testing"

	"go.uber.org/goleak"
	"google.golang.org/protobuf/encoding/protojson"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const secret = "hunter2hunter2"

func TestText(t *testing.T) {
	for text, want := range map[string]string{
		"password: " + secret + "\nname: x\n":                                      "password: [redacted]\nname: x\n",
		`{"db_password": "` + secret + `", "size": 5}`:                             `{"db_password": [redacted], "size": 5}`,
		"AMBIPOD_FD_KEY=" + secret + " \\\nLC_ALL=C":                               "AMBIPOD_FD_KEY=[redacted] \\\nLC_ALL=C",
		"url: https://me:" + secret + "@host/x":                                    "url: https://[redacted]@host/x",
		"url: https://" + secret + "@host/x":                                       "url: https://[redacted]@host/x",
		"Authorization: Basic " + secret + "\nHost: x":                             "Authorization: [redacted]\nHost: x",
		"sent Bearer " + secret + ", got 401":                                      "sent Bearer [redacted], got 401",
		"key: |\n  -----BEGIN RSA PRIVATE KEY-----\n" + secret:                     "key: |\n  [redacted]",
		"a: -----BEGIN PRIVATE KEY-----\nx\n-----END PRIVATE KEY-----\nb: c":       "a: [redacted]\nb: c",
		"jwt eyJhbGciOi.eyJzdWIiOi." + secret:                                      "jwt [redacted]",
		"user-data: |\n  #cloud-config\n  x: " + secret + "\n\n  y: 1\nnext: ok\n": "user-data: [redacted]next: ok\n",
		"--token=" + secret + " --v=2":                                             "--token=[redacted] --v=2",
		"passwd: '" + secret + " and more'":                                        "passwd: [redacted]",
		"time=2026 pulled image vm.ambipod.io/x@sha256:abcdef":                     "time=2026 pulled image vm.ambipod.io/x@sha256:abcdef",
		"https://host/path?x=1 and user@host":                                      "https://host/path?x=1 and user@host",
	} {
		got := Text(text)
		if strings.Contains(got, secret) || got != want {
			t.Errorf("%q became %q, want %q", text, got, want)
		}
	}
}

func TestJSON(t *testing.T) {
	const document = `{
		"id": "abc", "big": 9007199254740993, "empty": {}, "nothing": null, "tty": false,
		"annotations": {"io.kubernetes.pod": "kept", "mine": "kept2", "vm.ambipod.io/user-data": "` + secret + `"},
		"envs": [{"key": "A", "value": "` + secret + `"}, "B=` + secret + `"], "env": {"C": "` + secret + `"},
		"command": ["sh", "-c", "` + secret + `"],
		"auth": {"username": "` + secret + `"}, "password": "` + secret + `", "token": "", "insecureToken": true,
		"info": {"config": "{\"linux\": {\"memory\": 5}, \"envs\": [{\"key\": \"K\", \"value\": \"` + secret + `\"}]}"},
		"mounts": [{"host_path": "/var/x", "secret": {"deep": ["` + secret + `"]}}],
		"url": "http://u:` + secret + `@h/"
	}`
	got, err := JSON([]byte(document), func(name string) bool { return name == "mine" })
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(got), secret) {
		t.Errorf("a secret is left:\n%s", got)
	}
	for _, kept := range []string{`"id": "abc"`, "9007199254740993", `"kept"`, `"kept2"`, `"key": "A"`, `"B=[redacted]"`, `"sh"`, `"memory": 5`, `"/var/x"`, `"token": ""`, `"insecureToken": true`, `"tty": false`} {
		if !strings.Contains(string(got), kept) {
			t.Errorf("%s is lost:\n%s", kept, got)
		}
	}
	if _, err := JSON([]byte("nonsense"), nil); err == nil {
		t.Error("nonsense is JSON")
	}
}

func TestMessage(t *testing.T) {
	m := &runtimeapi.CreateContainerRequest{
		PodSandboxId: "box",
		Config: &runtimeapi.ContainerConfig{
			Envs: []*runtimeapi.KeyValue{{Key: "TOKEN", Value: []byte(secret)}}, Args: []string{"login", secret},
			Annotations: map[string]string{"x": secret, "io.kubernetes.x": "kept"},
		},
	}
	Message(m.ProtoReflect())
	pull := &runtimeapi.PullImageRequest{Auth: &runtimeapi.AuthConfig{Password: secret}}
	Message(pull.ProtoReflect())
	for _, text := range []string{protojson.Format(m), protojson.Format(pull)} {
		if strings.Contains(text, secret) {
			t.Errorf("a secret is left: %s", text)
		}
	}
	if got := m.GetConfig(); got.GetEnvs()[0].GetKey() != "TOKEN" || got.GetArgs()[0] != "login" || got.GetAnnotations()["io.kubernetes.x"] != "kept" || m.GetPodSandboxId() != "box" {
		t.Errorf("too much is gone: %v", m)
	}
}
