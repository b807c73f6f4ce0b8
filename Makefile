PYTHON ?= python3
export ONLY MINUTES

.PHONY: up test torture bench bench-quick check lock audit sbom

up:       ## install what is missing, then start the proxy and one worker: make up ARGS="--model ..."
	@$(PYTHON) scripts/up.py $(ARGS)

test:     ## run all tests that this machine supports: make test ARGS="tests/unit -x", or ARGS=--fast
	@$(PYTHON) scripts/test.py $(ARGS)

torture:  ## run the long tests: make torture ONLY=name MINUTES=n
	@$(PYTHON) scripts/torture.py $(ARGS)

bench:    ## compare with nginx and other peers, up to 60 minutes: make bench ONLY=row
	@$(PYTHON) scripts/bench.py $(ARGS)

bench-quick: ## compare three rows with the committed ratios, 4 minutes; status 1 if one is worse
	@$(PYTHON) scripts/bench.py --quick $(ARGS)

check:    ## check format, lint, types and import contracts: make check ARGS=--fix
	@$(PYTHON) scripts/check.py $(ARGS)

lock:     ## recompile requirements/*.txt: make lock ARGS=--upgrade
	@$(PYTHON) scripts/lock.py $(ARGS)

audit:    ## check pinned packages for vulnerabilities; status 0 clean, 1 vulnerable, 2 audit failed
	@$(PYTHON) scripts/audit.py $(ARGS)

sbom:     ## write a CycloneDX bill of materials of a base install to dist/sbom.json: make sbom ARGS=PATH
	@$(PYTHON) scripts/sbom.py $(ARGS)
