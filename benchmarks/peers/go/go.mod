module mitu/benchmarks/peer

go 1.24
