// Command peer is the article's "before" system: a gateway on Go's net/http and crypto/tls, as a Go programmer would
// write it. It answers /health itself and proxies everything else; on a second port it relays MQTT over TLS.
package main

import (
	"crypto/tls"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"runtime/metrics"
	"time"
)

func main() {
	listen := flag.String("listen", "127.0.0.1:0", "host:port of the HTTPS server")
	mqtt := flag.String("mqtt", "", "host:port of the MQTT relay; empty: none")
	certificate := flag.String("certificate", "", "PEM chain")
	key := flag.String("key", "", "PEM key")
	upstream := flag.String("upstream", "", "host:port that requests are proxied to")
	broker := flag.String("broker", "", "host:port that MQTT is relayed to")
	scan := flag.Bool("alpn", false, "time crypto/tls's ALPN decision, print JSON, and exit")
	flag.Parse()
	if *scan {
		benchmarkALPN()
		return
	}
	pair, err := tls.LoadX509KeyPair(*certificate, *key)
	if err != nil {
		log.Fatal(err)
	}
	settings := &tls.Config{
		Certificates:     []tls.Certificate{pair},
		MinVersion:       tls.VersionTLS12,
		CurvePreferences: []tls.CurveID{tls.X25519MLKEM768, tls.X25519, tls.CurveP256, tls.CurveP384},
	}
	if *mqtt != "" {
		relayed := settings.Clone()
		relayed.NextProtos = []string{"mqtt"}
		listener, err := tls.Listen("tcp", *mqtt, relayed)
		if err != nil {
			log.Fatal(err)
		}
		go relay(listener, *broker)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/health", health)
	mux.HandleFunc("/mutex-wait", mutexWait)
	mux.Handle("/", proxy(*upstream))
	server := &http.Server{
		Addr:              *listen,
		Handler:           mux,
		TLSConfig:         settings,
		ErrorLog:          log.New(io.Discard, "", 0),
		IdleTimeout:       time.Hour,
		ReadHeaderTimeout: 10 * time.Second,
		HTTP2:             &http.HTTP2Config{MaxConcurrentStreams: 128},
	}
	log.Fatal(server.ListenAndServeTLS("", ""))
}

// mutexWait tells how long goroutines have waited for locks so far, for benchmarks/contention.py.
func mutexWait(response http.ResponseWriter, _ *http.Request) {
	sample := []metrics.Sample{{Name: "/sync/mutex/wait/total:seconds"}}
	metrics.Read(sample)
	fmt.Fprintf(response, `{"seconds":%g}`, sample[0].Value.Float64())
}

func health(response http.ResponseWriter, _ *http.Request) {
	response.Header().Set("Content-Type", "application/json")
	io.WriteString(response, `{"ok":true}`)
}

func proxy(upstream string) http.Handler {
	target := &url.URL{Scheme: "http", Host: upstream}
	return &httputil.ReverseProxy{
		Rewrite: func(request *httputil.ProxyRequest) {
			request.SetURL(target)
			request.SetXForwarded()
		},
		Transport: &http.Transport{
			MaxIdleConns:        256,
			MaxIdleConnsPerHost: 256,
			IdleConnTimeout:     time.Hour,
			DisableCompression:  true,
		},
		ErrorLog: log.New(io.Discard, "", 0),
	}
}

// relay copies bytes between each client and a broker connection of its own until both directions have ended.
func relay(listener net.Listener, broker string) {
	for {
		client, err := listener.Accept()
		if err != nil {
			log.Fatal(err)
		}
		go func() {
			defer client.Close()
			upstream, err := net.Dial("tcp", broker)
			if err != nil {
				return
			}
			defer upstream.Close()
			go func() {
				io.Copy(upstream, client)
				upstream.(*net.TCPConn).CloseWrite()
			}()
			io.Copy(client, upstream)
		}()
	}
}
