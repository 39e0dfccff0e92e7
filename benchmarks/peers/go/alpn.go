package main

import (
	"encoding/json"
	"fmt"
	"os"
	"sort"
	"time"
)

// negotiate does what crypto/tls's unexported negotiateALPN does on a server (handshake_server.go, Go 1.26): for each
// protocol the server prefers, scan what the client offers.
func negotiate(server, client []string) (string, error) {
	if len(server) == 0 || len(client) == 0 {
		return "", nil
	}
	var http11fallback bool
	for _, s := range server {
		for _, c := range client {
			if s == c {
				return s, nil
			}
			if s == "h2" && c == "http/1.1" {
				http11fallback = true
			}
		}
	}
	if http11fallback {
		return "", nil
	}
	return "", fmt.Errorf("tls: client requested unsupported application protocols (%q)", client)
}

type row struct {
	Protocols int     `json:"protocols"`
	Client    string  `json:"client"`
	Offered   int     `json:"offered"`
	Ns        float64 `json:"ns"`
}

type offer struct {
	client string
	names  []string
}

// benchmarkALPN times the same protocols and the same clients as `mitu-load alpn` does.
func benchmarkALPN() {
	var rows []row
	for _, count := range []int{1, 8, 64} {
		server := []string{"h2"}
		for number := 1; number < count; number++ {
			server = append(server, fmt.Sprintf("private/%d", number))
		}
		var long []string
		for number := range 7 {
			long = append(long, fmt.Sprintf("unknown/%d", number))
		}
		long = append(long, server[len(server)-1])
		offers := []offer{
			{"h2, http/1.1", []string{"h2", "http/1.1"}},
			{"http/1.1, h2", []string{"http/1.1", "h2"}},
			{"8 names, match last", long},
			{"nothing in common", []string{"spdy/3.1", "http/1.0"}},
		}
		for _, offer := range offers {
			rows = append(rows, row{count, offer.client, len(offer.names), median(server, offer.names)})
		}
	}
	json.NewEncoder(os.Stdout).Encode(map[string]any{"rows": rows})
}

var sink string

func median(server, client []string) float64 {
	const batches, decisions = 11, 50_000
	results := make([]float64, batches)
	for batch := range results {
		started := time.Now()
		for range decisions {
			sink, _ = negotiate(server, client)
		}
		results[batch] = float64(time.Since(started).Nanoseconds()) / decisions
	}
	sort.Float64s(results)
	return results[batches/2]
}
