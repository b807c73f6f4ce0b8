PYTHON ?= python3
export ONLY MINUTES

.PHONY: up test torture check lock audit sbom

up:       ## install missing packages, then start the proxy and a worker: make up ARGS="--model ..."
	@$(PYTHON) scripts/up.py $(ARGS)

test:     ## every test that this machine can run: make test ARGS="tests/unit -x", or ARGS=--fast
	@$(PYTHON) scripts/test.py $(ARGS)

torture:  ## the long tests: make torture ONLY=name MINUTES=n
	@$(PYTHON) scripts/torture.py $(ARGS)

check:    ## format, lint, types, import contracts: make check ARGS=--fix
	@$(PYTHON) scripts/check.py $(ARGS)

lock:     ## compile requirements/*.txt again: make lock ARGS=--upgrade
	@$(PYTHON) scripts/lock.py $(ARGS)

audit:    ## ask an advisory service about every pinned package: 0 clean, 1 vulnerable, 2 no credible answer
	@$(PYTHON) scripts/audit.py $(ARGS)

sbom:     ## write a CycloneDX list of a base install to dist/sbom.json: make sbom ARGS=PATH
	@$(PYTHON) scripts/sbom.py $(ARGS)
