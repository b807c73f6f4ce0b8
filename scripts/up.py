"""`make up`: install what is missing, then run the proxy. Old Pythons can parse this file."""

from environment import starting

if __name__ == "__main__":
    starting.main()
