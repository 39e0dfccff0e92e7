"""The admin endpoint: what operators and `mitu reload | status | drain` talk to."""
