PYTHON ?= python3
export ONLY MINUTES

.PHONY: up test torture check lock

up:       ## install what is missing, then start the proxy and a worker: make up ARGS="--model ..."
	@$(PYTHON) scripts/up.py $(ARGS)

test:     ## every test that this machine can run: make test ARGS="tests/unit -x"
	@$(PYTHON) scripts/test.py $(ARGS)

torture:  ## the long tests: make torture ONLY=name MINUTES=n
	@$(PYTHON) scripts/torture.py $(ARGS)

check:    ## format, lint, types, import contracts: make check ARGS=--fix
	@$(PYTHON) scripts/check.py $(ARGS)

lock:     ## compile requirements/*.txt anew: make lock ARGS=--upgrade
	@$(PYTHON) scripts/lock.py $(ARGS)
