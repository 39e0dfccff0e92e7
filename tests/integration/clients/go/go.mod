module mitu/tests/client

go 1.25
