"""Models for tests, benchmarks and the demo: trained here (`digits`) or fetched (`zoo`)."""
