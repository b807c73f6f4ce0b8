"""`make up`: the set-up, then `vllm-serverless up` in this process's place. An old Python can read this file."""

from environment import starting

if __name__ == "__main__":
    starting.main()
