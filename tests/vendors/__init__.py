"""Stand-ins for the vendors: real servers on this machine that speak the vendors' protocols, and fail on demand.

Each is proven by the vendor's own SDK in tests/contract/test_vendors_*.py. Each also runs as a process of its own:
`python -m vendors.openai --port 0` prints its address, and takes its faults at `POST /__faults`.
"""
