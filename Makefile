# Short names for the scripts. Each target is one command; the scripts hold the logic.
.PHONY: help run test lint fmt docs test-conformance test-openapi-conformance migrate-up migrate-down docker-build pre-commit-install

help: ## List the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

run: ## Start Antiphon behind Envoy with a scripted model, and keep it running
	scripts/demo --keep

test: ## Set up and run the quick tests
	scripts/test

lint: ## Check format, lint, types, imports and generated files
	scripts/check

fmt: ## Format the code
	scripts/setup && .venv/bin/ruff format . && .venv/bin/ruff check --fix .

docs: ## Write the generated pages
	scripts/setup && scripts/docs

test-conformance: ## Run the Open Responses conformance suite against a gateway
	scripts/lab conformance

test-openapi-conformance: ## Send requests made from /openapi.json to a gateway
	scripts/lab api-fuzz

migrate-up: ## Apply missing schema steps to the databases of the settings (CONFIG=FILE)
	.venv/bin/antiphon migrate up $(if $(CONFIG),--config $(CONFIG))

migrate-down: ## Undo the last schema step (CONFIG=FILE)
	.venv/bin/antiphon migrate down --yes $(if $(CONFIG),--config $(CONFIG))

docker-build: ## Build the container image
	docker build -t antiphon .

pre-commit-install: ## Check changed files before each commit
	scripts/setup && .venv/bin/python -m pip install --quiet pre-commit && .venv/bin/pre-commit install
