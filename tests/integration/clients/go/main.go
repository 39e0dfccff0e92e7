// Command client makes HTTPS requests with Go's own net/http and says, in JSON, what came of them.
//
//	client -ca ca.crt -protocol h2 -n 200 -concurrency 8 https://localhost:8443/health
//
// With -until-refused it goes on until the port refuses connections, which is how a drained server must end; every
// other failure counts.
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"syscall"
	"time"
)

type report struct {
	Succeeded  int            `json:"succeeded"`
	Refused    int            `json:"refused"`
	Failed     int            `json:"failed"`
	Failures   []string       `json:"failures"`
	Protocols  map[string]int `json:"protocols"`
	Negotiated map[string]int `json:"negotiated"`
	Groups     map[string]int `json:"groups"`
	Resumed    int            `json:"resumed"`
	Body       string         `json:"body"`
}

type options struct {
	url          string
	method       string
	n            int
	untilRefused bool
}

func main() {
	ca := flag.String("ca", "", "PEM file of the trusted root")
	protocol := flag.String("protocol", "h2", "h1 or h2")
	concurrency := flag.Int("concurrency", 1, "requests at once")
	close := flag.Bool("close", false, "a connection for each request")
	connect := flag.String("connect", "", "host:port to connect to, whatever the URL says")
	var options options
	flag.StringVar(&options.method, "method", "GET", "request method")
	flag.IntVar(&options.n, "n", 1, "requests in all")
	flag.BoolVar(&options.untilRefused, "until-refused", false, "go on until connections are refused")
	flag.Parse()
	options.url = flag.Arg(0)

	pem, err := os.ReadFile(*ca)
	if err != nil {
		fail(err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		fail(fmt.Errorf("no certificate in %s", *ca))
	}
	client := &http.Client{Transport: transport(*protocol, *connect, *close, roots), Timeout: 30 * time.Second}

	total := report{
		Failures: []string{}, Protocols: map[string]int{}, Negotiated: map[string]int{}, Groups: map[string]int{},
	}
	var lock sync.Mutex
	var group sync.WaitGroup
	tickets := make(chan struct{}, options.n)
	for range options.n {
		tickets <- struct{}{}
	}
	for range *concurrency {
		group.Add(1)
		go func() {
			defer group.Done()
			work(client, options, tickets, &lock, &total)
		}()
	}
	group.Wait()
	if err := json.NewEncoder(os.Stdout).Encode(total); err != nil {
		fail(err)
	}
}

func transport(protocol, connect string, close bool, roots *x509.CertPool) *http.Transport {
	made := &http.Transport{
		TLSClientConfig:     &tls.Config{RootCAs: roots, ClientSessionCache: tls.NewLRUClientSessionCache(64)},
		DisableKeepAlives:   close,
		MaxIdleConnsPerHost: 256,
	}
	if connect != "" {
		made.DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
			var dialer net.Dialer
			return dialer.DialContext(ctx, network, connect)
		}
	}
	if protocol == "h1" {
		made.TLSClientConfig.NextProtos = []string{"http/1.1"}
	}
	made.Protocols = new(http.Protocols)
	made.Protocols.SetHTTP1(protocol == "h1")
	made.Protocols.SetHTTP2(protocol == "h2")
	return made
}

// work makes requests until there are none left to make.
func work(client *http.Client, options options, tickets chan struct{}, lock *sync.Mutex, total *report) {
	for {
		if !options.untilRefused {
			select {
			case <-tickets:
			default:
				return
			}
		}
		response, body, err := once(client, options)
		lock.Lock()
		switch {
		case errors.Is(err, syscall.ECONNREFUSED):
			total.Refused++
		case err != nil:
			total.Failed++
			total.Failures = append(total.Failures, err.Error())
		case response.StatusCode != http.StatusOK:
			total.Failed++
			total.Failures = append(total.Failures, response.Status)
		default:
			total.Succeeded++
			total.Protocols[response.Proto]++
			total.Negotiated[response.TLS.NegotiatedProtocol]++
			total.Groups[response.TLS.CurveID.String()]++
			if response.TLS.DidResume {
				total.Resumed++
			}
			total.Body = body
		}
		lock.Unlock()
		if options.untilRefused && err != nil {
			return
		}
	}
}

func once(client *http.Client, options options) (*http.Response, string, error) {
	request, err := http.NewRequest(options.method, options.url, nil)
	if err != nil {
		return nil, "", err
	}
	response, err := client.Do(request)
	if err != nil {
		return nil, "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	return response, string(body), err
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}
