// Allinone runs etcd, kube-apiserver, kube-controller-manager and kube-scheduler in one process.
//
//	allinone <etcd flags> -- <apiserver flags> -- <controller manager flags> -- <scheduler flags>
//
// The controller manager and the scheduler start once the API server says that it is ready: before that,
// the RBAC roles that they work under do not exist.
package main

import (
	"context"
	"flag"
	"fmt"
	"net/url"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/pflag"
	"go.etcd.io/etcd/server/v3/embed"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	logsapi "k8s.io/component-base/logs/api/v1"
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	_ "k8s.io/component-base/metrics/prometheus/version"
	"k8s.io/klog/v2"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	apioptions "k8s.io/kubernetes/cmd/kube-apiserver/app/options"
	kcm "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	kcmoptions "k8s.io/kubernetes/cmd/kube-controller-manager/app/options"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	schedoptions "k8s.io/kubernetes/cmd/kube-scheduler/app/options"
)

const (
	readyWithin = 2 * time.Minute
	stopWithin  = 10 * time.Second
)

func must(what string, err error) {
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", what, err)
		os.Exit(1)
	}
}

// split cuts the command line at each "--".
func split(args []string) (parts [][]string) {
	current := []string{}
	for _, arg := range args {
		if arg == "--" {
			parts = append(parts, current)
			current = []string{}
			continue
		}
		current = append(current, arg)
	}
	return append(parts, current)
}

func parse(name string, sets map[string]*pflag.FlagSet, args []string) {
	flags := pflag.NewFlagSet(name, pflag.ContinueOnError)
	for _, set := range sets {
		flags.AddFlagSet(set)
	}
	must(name, flags.Parse(args))
}

func startEtcd(args []string) *embed.Etcd {
	flags := flag.NewFlagSet("etcd", flag.ExitOnError)
	dir := flags.String("data-dir", "", "where the data lies")
	clientPort := flags.String("client-port", "2379", "port for the API server")
	peerPort := flags.String("peer-port", "2380", "port for peers, of which there are none")
	must("etcd", flags.Parse(args))

	cfg := embed.NewConfig()
	cfg.Name, cfg.Dir, cfg.LogLevel = "olivine", *dir, "warn"
	cfg.UnsafeNoFsync = true // the data does not outlive the process: a disk's latency would only slow it
	client, err := url.Parse("http://127.0.0.1:" + *clientPort)
	must("etcd", err)
	peer, err := url.Parse("http://127.0.0.1:" + *peerPort)
	must("etcd", err)
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = []url.URL{*client}, []url.URL{*client}
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = []url.URL{*peer}, []url.URL{*peer}
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)
	etcd, err := embed.StartEtcd(cfg)
	must("etcd", err)
	select {
	case <-etcd.Server.ReadyNotify():
	case <-time.After(readyWithin):
		must("etcd", fmt.Errorf("not ready after %s", readyWithin))
	}
	return etcd
}

// waitReady returns when the API server answers "ok" on /readyz to the bearer of the kubeconfig.
func waitReady(ctx context.Context, kubeconfig string) error {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return err
	}
	config.Timeout = 2 * time.Second
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, readyWithin)
	defer cancel()
	for {
		body, err := client.Discovery().RESTClient().Get().AbsPath("/readyz").DoRaw(ctx)
		if err == nil && string(body) == "ok" {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the API server is not ready: %v", err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func main() {
	parts := split(os.Args[1:])
	if len(parts) != 4 {
		must("usage", fmt.Errorf("want 4 parts divided by --, got %d", len(parts)))
	}
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer cancel()
	etcd := startEtcd(parts[0])
	defer etcd.Close()

	// Four commands share one process's globals: logging is set up once, feature gates are those of the API server.
	rest.SetDefaultWarningHandler(rest.NoWarnings{})
	logsapi.ReapplyHandling = logsapi.ReapplyHandlingIgnoreUnchanged
	api := apioptions.NewServerRunOptions()
	apiFlags := api.Flags()
	parse("kube-apiserver", apiFlags.FlagSets, parts[1])
	manager, err := kcmoptions.NewKubeControllerManagerOptions()
	must("kube-controller-manager", err)
	managerFlags := manager.Flags(kcm.KnownControllers(), kcm.ControllersDisabledByDefault(), kcm.ControllerAliases())
	manager.ParsedFlags = &managerFlags
	parse("kube-controller-manager", managerFlags.FlagSets, parts[2])
	sched := schedoptions.NewOptions()
	parse("kube-scheduler", sched.Flags.FlagSets, parts[3])
	must("feature gates", api.GenericServerRunOptions.ComponentGlobalsRegistry.Set())
	must("logging", logsapi.ValidateAndApply(api.Logs, utilfeature.DefaultFeatureGate))

	done := make(chan error, 3)
	go func() {
		completed, err := api.Complete(ctx)
		must("kube-apiserver options", err)
		if errs := completed.Validate(); len(errs) > 0 {
			must("kube-apiserver options", fmt.Errorf("%v", errs))
		}
		done <- apiserver.Run(ctx, completed)
	}()
	running := 1
	if err := waitReady(ctx, manager.Generic.ClientConnection.Kubeconfig); err != nil {
		if ctx.Err() == nil {
			must("kube-apiserver", err)
		}
	} else {
		running = 3
		go func() {
			config, err := manager.Config(ctx, kcm.KnownControllers(), kcm.ControllersDisabledByDefault(), kcm.ControllerAliases())
			must("kube-controller-manager", err)
			done <- kcm.Run(ctx, config.Complete())
		}()
		go func() {
			config, s, err := scheduler.Setup(ctx, sched)
			must("kube-scheduler", err)
			done <- scheduler.Run(ctx, config, s)
		}()
	}
	select {
	case <-ctx.Done():
		deadline := time.After(stopWithin)
		for range running {
			select {
			case <-done:
			case <-deadline:
				return
			}
		}
	case err := <-done:
		klog.ErrorS(err, "A component ended")
		klog.Flush()
		os.Exit(1)
	}
}
