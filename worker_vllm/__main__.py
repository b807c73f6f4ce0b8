"""`python -m worker_vllm [flags for vLLM ...]`.

vLLM's engine processes import this module too, hence the guard.
"""

if __name__ == "__main__":
    import sys

    from proxy.wire.interrupt import silent_interrupt

    with silent_interrupt():
        # Importing takes up to a second, in which a user may press Ctrl-C.
        from worker_vllm.main import main

    sys.exit(main(sys.argv[1:]))
