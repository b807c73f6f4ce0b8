"""`python -m worker_vllm [flags for vLLM ...]`.

vLLM's engine processes import this module too, hence the guard.
"""

if __name__ == "__main__":
    import sys

    from worker_vllm.main import main

    sys.exit(main(sys.argv[1:]))
