"""One model trained with each activation, deployed, and compared.

    python -m benchmarks.activation_study examples/g2p [--quick]

Run at the root of a checkout; docs/activations.md tells what came of it, and what a task of one's own is.
"""
