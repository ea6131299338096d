package cluster

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"time"

	"github.com/containerd/errdefs"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api/v1"
	"sigs.k8s.io/yaml"

	"github.com/ambipod/ambipod/tests/node"
)

// Names of keys and certificates, which are files NAME.key and NAME.crt, and of
// kubeconfigs, NAME.kubeconfig.
const (
	authority      = "ca"              // signs everybody but the aggregator
	frontAuthority = "front-proxy-ca"  // signs the aggregator alone
	serviceAccount = "service-account" // signs tokens
	etcdServer     = "etcd"
	apiServer      = "apiserver"
	apiToKubelet   = "apiserver-kubelet-client"
	frontProxy     = "front-proxy-client"
	admin          = "admin"
	metrics        = "metrics-server"
)

// lifetime of certificates: that of a cluster to play with, not one to depend on.
const lifetime = 365 * 24 * time.Hour

// identity is who a certificate speaks for.
type identity struct {
	name  string // of the files
	user  string
	group string
	ips   []net.IP // of a server
	names []string // of a server
}

// identities of everybody in the cluster, with the names that Kubernetes' own
// roles are bound to.
func (c *Cluster) identities() []identity {
	loopback, address := net.IPv4(127, 0, 0, 1), net.IP(c.node.IP().AsSlice())
	return append(memberIdentities(c.node), []identity{
		{name: etcdServer, user: "etcd", ips: []net.IP{loopback}},
		{
			name: apiServer, user: "kube-apiserver",
			ips: []net.IP{loopback, address, net.IP(serviceIP().AsSlice())},
			names: []string{
				"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc",
				"kubernetes.default.svc.cluster.local",
			},
		},
		{name: apiToKubelet, user: "kube-apiserver-kubelet-client", group: "system:masters"},
		{name: admin, user: "admin", group: "system:masters"},
		{name: ControllerManager, user: "system:kube-controller-manager"},
		{name: Scheduler, user: "system:kube-scheduler"},
		{name: Proxy, user: "system:kube-proxy"},
		{
			name: metrics, user: "system:metrics-server", ips: []net.IP{address},
			names: []string{"metrics-server.kube-system.svc"},
		},
		{name: DNS, user: "system:coredns"},
	}...)
}

// memberIdentities are kubelet's on one node, as a client and as a server.
func memberIdentities(n *node.Node) []identity {
	user, group := "system:node:"+n.Name(), "system:nodes"
	return []identity{
		{name: kubeletOf(n), user: user, group: group},
		{name: kubeletServing(n), user: user, group: group, ips: []net.IP{n.IP().AsSlice()}},
	}
}

func kubeletOf(n *node.Node) string      { return "kubelet-" + n.Name() }
func kubeletServing(n *node.Node) string { return "kubelet-serving-" + n.Name() }

// clients have a kubeconfig.
func (c *Cluster) clients() []string {
	return []string{kubeletOf(c.node), admin, ControllerManager, Scheduler, Proxy, metrics, DNS}
}

func (c *Cluster) certificate(name string) string { return c.path(name + ".crt") }
func (c *Cluster) key(name string) string         { return c.path(name + ".key") }
func (c *Cluster) kubeconfig(name string) string  { return c.path(name + ".kubeconfig") }

// makeIdentities writes all keys, certificates and kubeconfigs.
func (c *Cluster) makeIdentities() error {
	if err := os.MkdirAll(c.dir, 0o700); err != nil {
		return fmt.Errorf("make folder of cluster: %w", err)
	}
	ca, err := c.makeAuthority(authority)
	if err != nil {
		return err
	}
	for _, who := range c.identities() {
		if err := c.issue(ca, who); err != nil {
			return err
		}
	}
	front, err := c.makeAuthority(frontAuthority)
	if err != nil {
		return err
	}
	if err := c.issue(front, identity{name: frontProxy, user: frontProxy}); err != nil {
		return err
	}
	if _, err := c.makeKey(serviceAccount); err != nil {
		return err
	}
	for _, name := range c.clients() {
		if err := c.makeKubeconfig(name); err != nil {
			return err
		}
	}
	return nil
}

// loadAuthority finds the authority that makeIdentities made.
func (c *Cluster) loadAuthority() (signer, error) {
	pair, err := tls.LoadX509KeyPair(c.certificate(authority), c.key(authority))
	if err != nil {
		return signer{}, fmt.Errorf("read authority of cluster: %w", err)
	}
	key, ok := pair.PrivateKey.(*ecdsa.PrivateKey)
	if !ok {
		return signer{}, fmt.Errorf("key of the cluster's authority is a %T: %w", pair.PrivateKey, errdefs.ErrDataLoss)
	}
	return signer{pair.Leaf, key}, nil
}

// signer is an authority with its key.
type signer struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
}

// makeKey writes a new key.
func (c *Cluster) makeKey(name string) (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make key of %s: %w", name, err)
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("write key of %s: %w", name, err)
	}
	return key, c.write(name+".key", pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}))
}

func (c *Cluster) makeAuthority(name string) (signer, error) {
	key, err := c.makeKey(name)
	if err != nil {
		return signer{}, err
	}
	template, err := newTemplate(pkix.Name{CommonName: name})
	if err != nil {
		return signer{}, err
	}
	template.IsCA, template.BasicConstraintsValid = true, true
	template.KeyUsage |= x509.KeyUsageCertSign
	certificate, err := c.sign(name, template, &key.PublicKey, signer{template, key})
	return signer{certificate, key}, err
}

// issue writes key and certificate of an identity.
func (c *Cluster) issue(by signer, who identity) error {
	key, err := c.makeKey(who.name)
	if err != nil {
		return err
	}
	subject := pkix.Name{CommonName: who.user}
	if who.group != "" {
		subject.Organization = []string{who.group}
	}
	template, err := newTemplate(subject)
	if err != nil {
		return err
	}
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	if len(who.ips) > 0 {
		template.ExtKeyUsage = append(template.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
		template.IPAddresses, template.DNSNames = who.ips, who.names
	}
	_, err = c.sign(who.name, template, &key.PublicKey, by)
	return err
}

func newTemplate(subject pkix.Name) (*x509.Certificate, error) {
	const serialBits = 120
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), serialBits))
	if err != nil {
		return nil, fmt.Errorf("make serial number for %s: %w", subject.CommonName, err)
	}
	now := time.Now()
	return &x509.Certificate{
		SerialNumber: serial,
		Subject:      subject,
		NotBefore:    now.Add(-time.Hour), // the clock of a guest may be behind
		NotAfter:     now.Add(lifetime),
		KeyUsage:     x509.KeyUsageDigitalSignature,
	}, nil
}

// sign writes a certificate.
func (c *Cluster) sign(name string, template *x509.Certificate, public *ecdsa.PublicKey, by signer) (*x509.Certificate, error) {
	der, err := x509.CreateCertificate(rand.Reader, template, by.certificate, public, by.key)
	if err != nil {
		return nil, fmt.Errorf("sign certificate of %s: %w", name, err)
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("read certificate of %s: %w", name, err)
	}
	return certificate, c.write(name+".crt", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

// makeKubeconfig writes where the API server is and who its client is. Keys are
// inside, so that the file can be copied.
func (c *Cluster) makeKubeconfig(name string) error {
	var content [3][]byte
	for i, file := range []string{c.certificate(authority), c.certificate(name), c.key(name)} {
		data, err := os.ReadFile(file)
		if err != nil {
			return fmt.Errorf("make kubeconfig of %s: %w", name, err)
		}
		content[i] = data
	}
	const only = "ambipod"
	data, err := yaml.Marshal(clientcmdapi.Config{
		Kind:       "Config",
		APIVersion: "v1",
		Clusters: []clientcmdapi.NamedCluster{{
			Name:    only,
			Cluster: clientcmdapi.Cluster{Server: c.server(), CertificateAuthorityData: content[0]},
		}},
		AuthInfos: []clientcmdapi.NamedAuthInfo{{
			Name:     name,
			AuthInfo: clientcmdapi.AuthInfo{ClientCertificateData: content[1], ClientKeyData: content[2]},
		}},
		Contexts:       []clientcmdapi.NamedContext{{Name: only, Context: clientcmdapi.Context{Cluster: only, AuthInfo: name}}},
		CurrentContext: only,
	})
	if err != nil {
		return fmt.Errorf("make kubeconfig of %s: %w", name, err)
	}
	return c.write(name+".kubeconfig", data)
}

// server is the API server's address.
func (c *Cluster) server() string { return "https://" + c.node.IP().String() + ":" + apiPort }
