"""The service against its own OpenAPI document, fuzzed."""

import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

from tests.serving.conftest import Served

EXAMPLES = 8
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
]


def test_nothing_undocumented_and_no_server_error(served: Served) -> None:
    schema = schemathesis.openapi.from_url(f"{served.url}/openapi.json")
    operations = [each.ok() for each in schema.get_all_operations()]
    assert len(operations) == 14

    for operation in operations:
        check_operation(operation)


def check_operation(operation: schemathesis.APIOperation) -> None:
    quick = settings(
        max_examples=EXAMPLES, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )
    from hypothesis import given

    @quick
    @given(case=operation.as_strategy())
    def run(case: schemathesis.Case) -> None:
        _cheap(case)
        case.call_and_validate(checks=CHECKS)

    run()


def _cheap(case: schemathesis.Case) -> None:
    """Few pictures of few steps: what is tested is the surface."""
    if isinstance(case.body, dict):
        for name, most in (("n", 1), ("steps", 2), ("relay_steps", 1), ("batch_size", 1), ("n_iter", 1)):
            value = case.body.get(name)
            if isinstance(value, int | float) and not isinstance(value, bool) and value > most:
                case.body[name] = min(value, most) if value <= 1000 else value
