"""Settings: sources over each other, unknown names, rules, redaction."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from msgspec import Raw

from antiphon.app.upstreams import make_routes
from antiphon.config.section import field_paths, parse_address
from antiphon.config.settings import Settings, load_settings
from antiphon.config.sources import merge
from antiphon.config.upstreams import AuthMode
from antiphon.errors import ConfigError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "settings.yaml"


def test_defaults_are_valid_and_need_nothing() -> None:
    settings = load_settings()
    assert settings == Settings()
    assert settings.upstream.auth_mode is AuthMode.PASSTHROUGH


def test_flags_win_over_environment_over_file_over_defaults(file: Path) -> None:
    file.write_text("listen: 127.0.0.1:1\nworkers: 2\nupstream:\n  url: http://file/v1\n  host: from-file\n")
    environ = {"ANTIPHON_WORKERS": "3", "ANTIPHON_UPSTREAM__URL": "http://environ/v1", "HOME": "/root"}
    settings = load_settings({"upstream": {"url": "http://flag/v1/"}}, environ, file)
    assert (settings.listen, settings.workers, settings.mode) == ("127.0.0.1:1", 3, "auto")
    assert (settings.upstream.url, settings.upstream.host) == ("http://flag/v1", "from-file")


_SAMPLES = {
    "auth": "none",
    "keys": "0123456789abcdef",
    "api_keys": "0123456789abcdef",
    "owner.keys": "{anna: [0123456789abcdef]}",
    "url": "http://x/v1",
    "state.url": "sqlite:/somewhere",
    "state.direct_url": "postgresql://x/antiphon",
    "admin.token": "0123456789abcdef0123456789abcdef",
    "endpoint": "http://x",
    "traces_endpoint": "http://x/traces",
    "listen": ":0",
    "origins": "https://app.example",
    "owner_bytes_in_flight": "0",
    "envoy.metrics": "0.0.0.0:9902",
    "envoy.endpoint_picker.address": "picker:9002",
}


@pytest.mark.parametrize(
    ("path", "kind"), field_paths(Settings), ids=lambda value: ".".join(value) if type(value) is tuple else ""
)
def test_every_setting_can_come_from_the_environment(path: tuple[str, ...], kind: Any) -> None:
    value: Any = Settings().redacted()
    for part in path:
        value = value[part]
    if path == ("models",):
        value = "[{match: a, mode: disabled}]"
    elif path == ("prices",):
        value = "[{model: a, input: 1, output: 2}]"
    elif value is None or value == []:
        # Settings without a default: any value of the right kind.
        value = _SAMPLES.get(".".join(path), _SAMPLES.get(path[-1], "1"))
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    environ = {"ANTIPHON_" + "__".join(path).upper(): text}
    if path[:2] == ("sidecar", "tls"):
        # Files come in pairs, and none without the certificate.
        environ |= {f"ANTIPHON_SIDECAR__TLS__{name}": "1" for name in ("CERT", "KEY", "ENVOY_CERT", "ENVOY_KEY")}
    if path == ("envoy", "endpoint_picker", "ca_file"):
        environ["ANTIPHON_ENVOY__ENDPOINT_PICKER__TLS"] = "verified"
    if path == ("state", "direct_url"):
        environ |= {"ANTIPHON_STATE__URL": text, "ANTIPHON_OWNER__KEY": "k" * 16, "ANTIPHON_SEALING__KEYS": "k" * 16}
    if path[0] == "blobs":
        # They say something together alone.
        bucket = {"URL": "s3://bucket/x", "ENDPOINT": "http://x", "KEY_ID": "1", "SECRET": "1"}
        environ |= {f"ANTIPHON_BLOBS__{name}": one for name, one in bucket.items()}
    if path in (("owner", "api_keys"), ("owner", "keys")):
        environ["ANTIPHON_UPSTREAM__AUTH"] = "none"
    if path == ("upstream", "auth"):
        assert load_settings({}, environ).upstream.auth_mode is AuthMode.NONE
    else:
        load_settings({}, environ)


def test_lists_are_separated_by_commas_in_the_environment() -> None:
    settings = load_settings({}, {"ANTIPHON_UPSTREAM__MODELS": "a, b/c:7b ,", "ANTIPHON_UPSTREAM__HEADER_ALLOW": ""})
    assert settings.upstream.models == ("a", "b/c:7b")
    assert settings.upstream.header_allow == ()


@pytest.mark.parametrize("text", ['["a", "b/c:7b"]', " [a, 'b/c:7b']"])
def test_lists_can_be_json_or_yaml_in_the_environment(text: str) -> None:
    assert load_settings({}, {"ANTIPHON_UPSTREAM__MODELS": text}).upstream.models == ("a", "b/c:7b")
    with pytest.raises(ConfigError, match="ANTIPHON_UPSTREAM__MODELS is not valid YAML"):
        load_settings({}, {"ANTIPHON_UPSTREAM__MODELS": text[:-1]})


@pytest.mark.parametrize("name", ["Content-Encoding", "content-length", "host", "transfer-encoding"])
def test_headers_of_the_clients_body_cannot_be_passed_on(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"upstream\.header_allow: {name.lower()} cannot be forwarded"):
        load_settings({"upstream": {"header_allow": ["x-ok", name]}})


@pytest.mark.parametrize(
    ("environ", "says"),
    [
        ({"ANTIPHON_LISTN": "x"}, "ANTIPHON_LISTN is not a setting; did you mean ANTIPHON_LISTEN?"),
        ({"ANTIPHON_UPSTREAM_URL": "x"}, "did you mean ANTIPHON_UPSTREAM__URL?"),
        ({"ANTIPHON_COLOUR_OF_THE_BIKESHED": "x"}, "ANTIPHON_COLOUR_OF_THE_BIKESHED is not a setting"),
        ({"ANTIPHON_WORKERS": "many"}, "workers:"),
        ({"ANTIPHON_WORKERS": "0"}, "workers:"),
        ({"ANTIPHON_DOOR": "back"}, "door:"),
    ],
)
def test_the_environment_is_checked(environ: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigError) as failure:
        load_settings({}, environ)
    assert says in str(failure.value)


def test_variables_for_envoy_and_of_the_settings_file_are_no_settings() -> None:
    environ = {"ANTIPHON_UPSTREAM_KEY": "k", "ANTIPHON_SIDECAR_SECRET": "s", "ANTIPHON_CONFIG": "/nowhere"}
    assert load_settings({}, environ) == Settings()


_SERVICE = {
    "ANTIPHON_SERVICE_HOST": "10.96.0.12",
    "ANTIPHON_SERVICE_PORT": "8080",
    "ANTIPHON_SERVICE_PORT_HTTP": "8080",
    "ANTIPHON_PORT": "tcp://10.96.0.12:8080",
    "ANTIPHON_PORT_8080_TCP": "tcp://10.96.0.12:8080",
    "ANTIPHON_PORT_8080_TCP_PROTO": "tcp",
    "ANTIPHON_PORT_8080_TCP_PORT": "8080",
    "ANTIPHON_PORT_8080_TCP_ADDR": "10.96.0.12",
}


@pytest.mark.parametrize("name", ["ANTIPHON", "ANTIPHON_CHAT", "ANTIPHON_MY_SERVICE"])
def test_what_kubernetes_says_of_a_service_is_no_setting(name: str) -> None:
    """A Service called antiphon, or antiphon-chat, gives every pod beside it these variables."""
    environ = {variable.replace("ANTIPHON", name, 1): value for variable, value in _SERVICE.items()}
    assert load_settings({}, {**environ, "ANTIPHON_WORKERS": "2"}).workers == 2


@pytest.mark.parametrize(
    "environ",
    [
        {"ANTIPHON_PORT": "8080"},
        {"ANTIPHON_LISTEN_PORT": "8080"},
        {"ANTIPHON_SERVICE_PORT": "8080"},
        {"ANTIPHON_SERVICE_HOST": "0.0.0.0"},
        {**_SERVICE, "ANTIPHON_SERVICE_PROT": "8080"},
        {**_SERVICE, "ANTIPHON_CHAT_SERVICE_PORT": "8080"},
        {**_SERVICE, "ANTIPHON_PORT_HTTP": "8080"},
    ],
)
def test_what_only_looks_like_it_is_still_wrong(environ: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="is not a setting"):
        load_settings({}, environ)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("listn: 127.0.0.1:1", "listn is not a setting; did you mean listen?"),
        ("code_interpreter: {enabled: true}", "did you mean code_interpreter.sandbox?"),
        ("mcp: {servers: []}", "did you mean mcp.connectors or mcp.allow?"),
        ("upstream: {url: http://x/v1/chat/completions/}", "leave out /chat/completions at its end"),
        ("upstream: {url: http://x/v1/responses}", "leave out /responses at its end"),
        ("upstream: {uri: http://x/v1}", "upstream.uri is not a setting; did you mean upstream.url?"),
        ("upstream: http://x/v1", "upstream must be a mapping"),
        ("- a\n- b", "must be a mapping"),
        ("a: [", "is not valid YAML"),
        ("workers: 1\nworkers: 2", "workers is given twice"),
        ("workers: []", "workers:"),
        ("upstream: {url: ftp://x}", "upstream.url: must be an http:// or https:// URL"),
        ("upstream: {url: 'http://user:pw@x/v1'}", "upstream.url: must not contain credentials"),
        ("upstream: {url: 'http://x/v1?a=b'}", "upstream.url: must not have a query"),
        ("upstream: {auth: inject}", "upstream.api_key is not set"),
        ("blobs: {url: 'https://bucket/x'}", "blobs.url: must be s3://bucket or s3://bucket/prefix"),
        ("blobs: {url: 's3://bucket/../x'}", "blobs.url: must be s3://bucket or s3://bucket/prefix"),
        ("blobs: {url: 's3://bucket', endpoint: 'minio:9000'}", "blobs.endpoint: must be an http:// or https:// URL"),
        ("blobs: {url: 's3://bucket', key_id: a}", "key_id and secret belong together"),
        ("blobs: {endpoint: 'http://x'}", "url is not set"),
        ("sidecar: {grpc: '0.0.0.0:9000'}", "sidecar.grpc listens on TCP"),
        ("listen: nowhere", "is not HOST:PORT"),
        ("cors: {origins: [app.example]}", "cors.origins: entry 1 is not an origin"),
        ("cors: {origins: ['https://app.example/page']}", "is not an origin"),
        ("metrics: {listen: 'unix:/x'}", "is not HOST:PORT"),
        ("envoy: {metrics: 'unix:/x'}", "is not HOST:PORT"),
        ("sidecar: {socket_mode: 0x1ff7}", "sidecar.socket_mode"),
    ],
)
def test_the_file_is_checked(file: Path, text: str, says: str) -> None:
    file.write_text(text)
    with pytest.raises(ConfigError) as failure:
        load_settings({}, {}, file)
    assert says in str(failure.value)
    assert "user:pw" not in str(failure.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('upstream: {url: "http://x/v1"\n api_key: KEY}', "line 2, column"),
        ("upstream:\n  url: http://x/v1\n api_key: KEY\n", "line 3, column"),
        ("upstream: {api_key: *KEY}", "line 1, column 21: found undefined alias"),
        ("upstream: {api_key: !KEY x}", "line 1, column 21"),
        ("upstream: {api_key: !!int KEY}", "invalid value"),
        ("upstream: {api_key: 'KEY}", "line 1, column"),
        ("upstream: {api_key: KEY\x01}", "invalid character"),
        ("upstream: {api_key:KEY}", "upstream.api_key… is not a setting; did you mean upstream.api_key?"),
        ("upstreams: {a: {api_key=KEY: }}", "upstreams.a.api_key…"),
        ("upstream: {api_key: [KEY]}", "upstream.api_key: must be a text"),
        ("sealing: {keys: [KEY]}", "sealing.keys: every key needs"),
        ("upstream: {url: 'http://KEY:KEY'}", "upstream.url: the port"),
        ("upstream: {url: 'http://me:KEY@x/v1'}", "upstream.url"),
        ("mcp: {servers: {a: {url: 'http://x', headers: {authorization: {KEY: KEY}}}}}", "mcp."),
    ],
)
def test_what_is_wrong_about_a_file_is_told_without_what_it_holds(file: Path, text: str, says: str) -> None:
    key = "sk-secret"
    file.write_text(text.replace("KEY", key))
    with pytest.raises(ConfigError) as failure:
        load_settings({}, {}, file)
    assert says in str(failure.value)
    assert "secret" not in str(failure.value)


@pytest.mark.parametrize("text", ['[{"key": sk-secret, "match"', "{a: {api_key: sk-secret", "*sk-secret", "sk-secret"])
@pytest.mark.parametrize("name", ["ANTIPHON_UPSTREAMS", "ANTIPHON_MODELS", "ANTIPHON_MCP__SERVERS"])
def test_what_is_wrong_about_a_variable_is_told_without_what_it_holds(name: str, text: str) -> None:
    with pytest.raises(ConfigError) as failure:
        load_settings({}, {name: text})
    assert "secret" not in str(failure.value)


def test_a_file_is_utf_8_in_every_locale(file: Path) -> None:
    file.write_bytes("listen: 'größe'\n".encode())
    code = (
        "import pathlib, sys; from antiphon.config.sources import read_file; "
        "print(ascii(read_file(pathlib.Path(sys.argv[1]))))"
    )
    environ = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    said = subprocess.run([sys.executable, "-c", code, str(file)], env=environ, capture_output=True, text=True)
    assert (said.stdout, said.returncode) == (ascii({"listen": "größe"}) + "\n", 0), said.stderr


def test_an_empty_file_and_a_missing_one(file: Path) -> None:
    file.write_text("# nothing yet\n")
    assert load_settings({}, {}, file) == Settings()
    with pytest.raises(ConfigError, match=r"cannot be read: No such file"):
        load_settings({}, {}, file.with_name("absent.yaml"))


@pytest.mark.parametrize("text", ["0660", "0o660", "432"])
def test_file_modes_are_octal_when_they_begin_with_zero(text: str) -> None:
    assert load_settings({}, {"ANTIPHON_SIDECAR__SOCKET_MODE": text}).sidecar.socket_mode == 0o660


def test_a_key_means_that_it_is_sent() -> None:
    settings = load_settings({}, {"ANTIPHON_UPSTREAM__API_KEY": "sk-1"})
    assert settings.upstream.auth_mode is AuthMode.INJECT
    assert load_settings({"upstream": {"auth": "none"}}, {}).upstream.auth_mode is AuthMode.NONE


def test_an_upstream_by_the_name_that_other_gateways_have() -> None:
    endpoint, key = {"OPENAI_API_ENDPOINT": "https://models.example/v1"}, {"OPENAI_API_KEY": "sk-env"}
    assert load_settings(environ=endpoint).upstream.url == "https://models.example/v1"
    both = load_settings(environ={**endpoint, **key}).upstream
    assert both.api_key is not None and both.api_key.get_secret_value() == "sk-env"
    assert both.auth_mode is AuthMode.INJECT


@pytest.mark.parametrize(
    ("values", "url"),
    [
        # The key alone is somebody else's.
        ({"environ": {"OPENAI_API_KEY": "sk-env"}}, "http://127.0.0.1:11434/v1"),
        # Whatever else says where the upstream is wins, and the key is not for it.
        ({"flags": {"upstream": {"url": "http://other/v1"}}}, "http://other/v1"),
        ({"environ": {"ANTIPHON_UPSTREAM__URL": "http://other/v1"}}, "http://other/v1"),
        ({"flags": {"upstreams": {"b": {"url": "http://b/v1"}}}}, "http://127.0.0.1:11434/v1"),
    ],
)
def test_a_key_that_lies_in_the_environment_is_for_the_endpoint_beside_it_alone(
    values: dict[str, Any], url: str
) -> None:
    environ = {"OPENAI_API_ENDPOINT": "https://models.example/v1", "OPENAI_API_KEY": "sk-env"}
    if "OPENAI_API_KEY" in values.get("environ", {}):
        del environ["OPENAI_API_ENDPOINT"]
    upstream = load_settings(**{**values, "environ": environ | values.get("environ", {})}).upstream
    assert upstream.url == url and upstream.api_key is None


def test_a_client_key_that_is_passed_through_stays_so() -> None:
    environ = {"OPENAI_API_ENDPOINT": "https://models.example/v1", "OPENAI_API_KEY": "sk-env"}
    upstream = load_settings({"upstream": {"auth": "passthrough"}}, environ).upstream
    assert upstream.url == "https://models.example/v1" and upstream.api_key is None


def test_no_secret_is_rendered() -> None:
    environ = {
        "ANTIPHON_UPSTREAM__API_KEY": "very-secret",
        "ANTIPHON_OWNER__KEY": "very-secret",
        "ANTIPHON_SIDECAR__SECRET": "very-secret",
    }
    settings = load_settings({}, environ)
    assert "very-secret" not in f"{settings!r} {settings.redacted()} {settings.model_dump()}"
    assert settings.redacted()["upstream"]["api_key"] == "**********"
    assert settings.sidecar_secret() == "very-secret"


@pytest.mark.parametrize(
    ("url", "address", "base", "authority"),
    [
        ("http://host", ("host", 80), "", "host"),
        ("https://host/api/v1/", ("host", 443), "/api/v1", "host"),
        ("http://10.0.0.1:8000/v1", ("10.0.0.1", 8000), "/v1", "10.0.0.1:8000"),
    ],
)
def test_the_parts_of_an_upstream_url(url: str, address: tuple[str, int], base: str, authority: str) -> None:
    upstream = load_settings({"upstream": {"url": url}}).upstream
    assert (upstream.address, upstream.base_path, upstream.authority) == (address, base, authority)


def test_addresses() -> None:
    assert parse_address("unix:/x") == ("unix", 0)
    assert parse_address("[::1]:80") == ("::1", 80)
    assert parse_address(":80") == ("0.0.0.0", 80)
    for wrong in ("80", "host", "host:", "host:99999", "host:x"):
        with pytest.raises(ValueError, match="HOST:PORT"):
            parse_address(wrong)


def test_merging_changes_neither_side() -> None:
    below = {"a": {"b": 1, "c": 2}, "d": 3}
    above = {"a": {"b": 9}, "d": {"e": 1}}
    assert merge(below, above) == {"a": {"b": 9, "c": 2}, "d": {"e": 1}}
    assert below == {"a": {"b": 1, "c": 2}, "d": 3}


# Several upstreams


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"models": [{"match": "a", "upstream": "nope"}]},
            r"models\[0\]\.upstream: 'nope' is unknown; choose one of default",
        ),
        ({"upstreams": {"default": {}}}, "'default' is not a valid name"),
        ({"upstreams": {"a_b": {}}}, "'a_b' is not a valid name"),
        ({"upstreams": {"a": {"auth": "inject"}}}, r"upstreams\.a\.auth is inject"),
        ({"upstreams": {"a": {"url": "ftp://x"}}}, r"upstreams\.a\.url: must be an http"),
        ({"upstreams": {"a": {"path_allow": ["/x"]}}}, r"upstreams\.a\.path_allow: only the section 'upstream'"),
        ({"upstreams": {"a": {"speed": 1}}}, r"upstreams\.a\.speed"),
        ({"upstreams": {"a": {"auth": "none", "header_allow": ["Authorization"]}}}, "names authorization"),
        ({"upstream": {"header_allow": ["x-antiphon-backend"]}}, "Envoy and the sidecar use it internally"),
        ({"models": [{"match": "a[b"}]}, "'\\[' without its '\\]'"),
        ({"models": [{"match": ""}]}, "match is empty"),
        ({"models": [{"match": "a"}, {"match": "a"}]}, r"models\[1\]\.match: 'a' is in two entries"),
        ({"models": [{"match": "a", "mode": "native", "model": "b"}]}, "leave 'model' out"),
        ({"upstreams": {"a": {}}, "models": [{"match": "b"}]}, "'default' is unknown; choose one of a"),
    ],
)
def test_what_is_wrong_about_upstreams_and_models_is_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_settings(values)


def _two(
    upstream: Any, a: dict[str, Any] | None = None, b: dict[str, Any] | None = None, **more: Any
) -> dict[str, Any]:
    upstreams = {"a": {"url": "http://a/v1", **(a or {})}, "b": {"url": "http://b/v1", **(b or {})}}
    return {"upstreams": upstreams, "models": [{"match": "m", "upstream": upstream, **more}]}


_WEIGHTED = [{"name": "a", "weight": 3}, {"name": "b", "weight": 1}]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (_two(["a", "c", "d"]), "models[0].upstream: 'c', 'd' is unknown; choose one of a, b"),
        (_two([]), "models[0].upstream: must be a name, a list of names ([a, b]), or a list of names with weights"),
        (_two({"name": "a"}), "models[0].upstream: must be a name, a list"),
        (_two(5), "models[0].upstream: must be a name, a list"),
        (_two(["a", 5]), "models[0].upstream: each entry of the list must be a name, or {name: a, weight: 3}"),
        (_two([{"weight": 1}]), "models[0].upstream: each entry of the list must be a name, or {name: a, weight: 3}"),
        (_two(["a", "b", "a"]), "models[0].upstream: a is in the list twice"),
        (_two([{"name": "a", "weight": 1}, "b"]), "models[0].upstream: give a weight to every entry of the list"),
        (_two([{"name": "a", "weight": 0}, "b"]), "models[0].upstream: weight must be a whole number from 1 to 100"),
        (_two([{"name": "a", "weight": True}]), "models[0].upstream: weight must be a whole number from 1 to 100"),
        (_two([{"name": "a", "priority": 1, "weight": 1}]), "models[0].upstream: there is no 'priority'"),
        (
            _two([{"name": "a", "model": "x"}]),
            "models[0].upstream: an entry of the list cannot have 'model' or 'profile'",
        ),
        (
            _two([{"name": "a", "wieght": 1}]),
            "models[0].upstream: an entry of the list has only 'name' and 'weight'",
        ),
        (_two(["a", "b"], mode="native"), "models[0]: a native model needs a single upstream"),
        (
            _two(["a", "b"], b={"header_allow": ["x-a"]}),
            "models[0].upstream: a and b differ in 'header_allow'. All upstreams of a list need the same value",
        ),
        (_two(_WEIGHTED, a={"models": ["m"]}), "a and b differ in 'models'"),
        (_two(["a", "b"], b={"profile_flags": {"images": False}}), "a and b differ in 'profile_flags'"),
    ],
    ids=str,
)
def test_what_is_wrong_about_a_list_of_upstreams_is_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_settings(values)


@pytest.mark.parametrize(
    ("upstream", "name", "several", "ordered"),
    [
        (["a", "b"], "a,b", ("a", "b"), True),
        (["b", {"name": "a"}], "b,a", ("b", "a"), True),
        (_WEIGHTED, "a:3,b:1", ("a", "b"), False),
        (["a"], "a", (), False),
        ([{"name": "a", "weight": 3}], "a", (), False),
    ],
)
def test_several_upstreams_for_one_model(upstream: Any, name: str, several: tuple[str, ...], ordered: bool) -> None:
    allowed = {"header_allow": ["x-a", "x-b"], "api_key": "k"}, {"header_allow": ["x-b", "x-a"]}
    settings = load_settings(_two(upstream, *allowed))
    # As a child process gets them.
    values = settings.redacted()
    values["upstreams"]["a"]["api_key"] = "k"
    settings = load_settings({name: values[name] for name in ("upstreams", "models")})
    assert list(settings.groups) == ([name] if several else [])
    route = make_routes(settings).choose("m")
    assert (route.upstream, route.several, route.ordered) == (name, several, ordered)
    assert route.upstreams == (several or ("a",))
    assert route.passthrough is bool(several), "the client's key is for b alone, and goes no further"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            _two(["a", "b"], {"profile": "vllm"}),
            "models (m): the upstreams a (profile vllm) and b (profile generic until Antiphon has detected",
        ),
        (
            _two(_WEIGHTED, {"profile": "vllm"}, {"profile": "openai"}),
            "the upstreams a (profile vllm) and b (profile openai) have different profiles.",
        ),
    ],
)
def test_upstreams_of_a_list_are_written_to_alike(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        make_routes(load_settings(values))
    values["models"][0]["profile"] = "vllm"
    assert make_routes(load_settings(values)).choose("m").profile.name == "vllm"


@pytest.mark.parametrize("pattern", ["a*", "[ab]*", "[!a]?", "[]]x", "[[]x", "x]"])
def test_patterns_that_are_right(pattern: str) -> None:
    assert load_settings({"models": [{"match": pattern}]}).models[0].match == pattern


def test_upstreams_and_models_from_the_environment() -> None:
    environ = {
        "ANTIPHON_UPSTREAMS": "{fast: {url: 'http://fast/v1', api_key: secret-key}}",
        "ANTIPHON_MODELS": "[{match: 'f-*', upstream: fast, context_tokens: 4096}]",
        "ANTIPHON_UPSTREAM_KEY_FAST": "of Envoy's process, no setting",
    }
    settings = load_settings({}, environ)
    assert settings.upstreams["fast"].auth_mode is AuthMode.INJECT
    assert settings.models[0].context_tokens == 4096
    assert "secret-key" not in str(settings.redacted()) + repr(settings)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"upstream": {"profile_flags": {"named_tool": "required"}}},
            "upstream.profile_flags: 'named_tool' is not a flag",
        ),
        ({"upstream": {"field_allow": ["messages"]}}, "upstream.field_allow: messages cannot be in the list"),
        ({"upstream": {"field_allow": ["input"]}}, "upstream.field_allow: input cannot be in the list"),
        ({"models": [{"match": "a", "extra": {"n": 2}}]}, "models[0].extra: n cannot be in the setting"),
        ({"models": [{"match": "a", "extra": {"max_tokens": 2}}]}, "max_tokens cannot be in the setting"),
        ({"models": [{"match": "a", "profile_flags": {"think": "on"}}]}, "models[0].profile_flags: think: 'on'"),
        ({"models": [{"match": "a", "mode": "native", "extra": {"seed": 2}}]}, "leave 'extra' and 'profile_flags' out"),
    ],
)
def test_what_settings_may_not_add_to_a_request(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_settings(values)


def test_what_settings_add_to_a_request() -> None:
    settings = load_settings(
        {
            "upstream": {"field_allow": ["provider"], "profile_flags": {"images": False, "parameters": ["seed"]}},
            "models": [{"match": "a", "extra": {"seed": 2}, "profile_flags": {"named_tool_choice": "required"}}],
        }
    )
    # As a child process gets them.
    routes = make_routes(load_settings(settings.redacted()))
    route, other = routes.choose("a"), routes.choose("b")
    assert (route.profile.named_tool_choice, route.profile.images) == ("required", False)
    assert (other.profile.named_tool_choice, other.profile.parameters) == ("native", frozenset({"seed"}))
    assert (dict(route.extra), dict(other.extra)) == ({"seed": Raw(b"2")}, {})
    assert route.fields == frozenset({"provider"})


def test_the_section_upstream_counts_when_it_is_given_or_alone() -> None:
    others: dict[str, Any] = {"upstreams": {"a": {}}}
    assert list(load_settings().every_upstream) == ["default"]
    assert list(load_settings(others).every_upstream) == ["a"]
    assert list(load_settings({**others, "upstream": {"profile": "auto"}}).every_upstream) == ["default", "a"]
    assert list(load_settings(others, {"ANTIPHON_UPSTREAM__HOST": "x"}).every_upstream) == ["default", "a"]


def test_ids_go_to_the_only_native_upstream_of_a_single_owner() -> None:
    values: dict[str, Any] = {
        "upstreams": {"a": {}, "b": {}},
        "models": [{"match": "a*", "upstream": "a", "mode": "native"}],
    }
    single = {"owner": {"source": "single"}}
    assert load_settings(values).native_of_ids is None
    assert load_settings({**values, **single}).native_of_ids == "a"
    values["models"].append({"match": "b*", "upstream": "b", "mode": "native"})
    assert load_settings({**values, **single}).native_of_ids is None


def test_keys_of_clients_are_checked_and_never_shown() -> None:
    digest = "sha256:" + "0" * 64
    inject = {"ANTIPHON_UPSTREAM__API_KEY": "up"}
    for wrong in (
        "short",
        "0123456789abcde\x7f",
        "0123456789 abcdef",
        "sha256:00",
        digest.upper(),
        "sha256:" + "g" * 64,
    ):
        with pytest.raises(ConfigError, match=r"api_keys\[0\]") as refused:
            load_settings({"owner": {"api_keys": [wrong]}}, inject)
        assert wrong not in str(refused.value)
    settings = load_settings({}, {**inject, "ANTIPHON_OWNER__API_KEYS": f"0123456789abcdef,{digest}"})
    assert len(settings.owner.api_keys) == 2 and settings.decides_chat
    shown = str(settings.redacted()) + str(settings)
    assert "0123456789abcdef" not in shown and "00000000" not in shown


ANNA, BO = "anna-key-of-sixteen", "bo-key-of-sixteen-too"


@pytest.mark.parametrize(
    ("owner", "said"),
    [
        ({"keys": {"anna": []}}, "owner.keys.anna"),
        ({"keys": {"anna": ["short"]}}, "keys[0]: a key needs at least 16"),
        ({"keys": {"anna": ["sha256:00"]}}, "keys[0]: 64 hexadecimal digits"),
        ({"keys": {"an na": [ANNA]}}, "'an na' is not a valid name"),
        ({"keys": {"": [ANNA]}}, "'' is not a valid name"),
        ({"keys": {"n:x": [ANNA]}}, "'n:x' is not a valid name"),
        ({"keys": {"anna": [ANNA], "bo": [ANNA]}}, "a key of keys.anna is also in bo"),
        ({"keys": {"anna": [ANNA]}, "api_keys": [ANNA]}, "a key of keys.anna is also in api_keys"),
        ({"keys": {"anna": ["sha256:" + hashlib.sha256(ANNA.encode()).hexdigest()], "bo": [ANNA]}}, "is also in bo"),
        ({"keys": {"api_keys": [ANNA]}, "api_keys": [ANNA]}, "a key of keys.api_keys is also in api_keys"),
        ({"keys": {ANNA: ["anna"]}}, "an entry has a client key in place of the owner's name"),
        ({"keys": {ANNA: "anna"}}, "an entry has no list of keys, or has a client key in place of the owner's name"),
        ({"keys": {ANNA: BO}}, "an entry has no list of keys, or has a client key in place of the owner's name"),
        ({"keys": {ANNA: {"team": "lab"}}}, "an entry has no list of keys, or has a client key in place"),
        ({"keys": {ANNA: {"keys": BO}}}, "an entry has no list of keys, or has a client key in place"),
        ({"keys": {ANNA: None}}, "an entry has no list of keys, or has a client key in place"),
        ({"keys": {"anna": {ANNA: "x"}}}, "an entry has a client key in place of a setting's name"),
        ({"keys": {"anna": {"keys": [ANNA], "models": []}}}, "owner.keys.anna.models"),
        ({"keys": {"anna": {"keys": [ANNA], "tools": []}}}, "owner.keys.anna.tools"),
        ({"keys": {"anna": [ANNA]}, "source": "header"}, "set source to bearer"),
        ({"keys": {"anna": [ANNA]}, "source": "single"}, "set source to bearer"),
        ({"keys": {"anna": {"keys": [ANNA], "modles": ["a"]}}}, "modles"),
    ],
)
def test_named_owners_are_checked_and_their_keys_never_shown(owner: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load_settings({"owner": owner, "upstream": {"auth": "none"}}, {})
    assert said in str(refused.value) and ANNA not in str(refused.value)


@pytest.mark.parametrize("owner", [{"api_keys": [BO]}, {"keys": {"anna": [ANNA]}}, {"keys": {}}])
def test_every_kind_of_client_key_is_in_force(owner: dict[str, Any]) -> None:
    """It reaches no upstream, decides about Chat Completions, and is not shown."""
    with pytest.raises(ConfigError, match=r"set upstream\.auth") as refused:
        load_settings({"owner": owner, "upstream": {"auth": "passthrough"}}, {})
    assert f"owner.{next(iter(owner))}: clients' keys" in str(refused.value)
    settings = load_settings({"owner": owner, "upstream": {"auth": "none"}}, {})
    assert settings.owner.has_client_keys and settings.decides_chat
    assert not [key for key in (ANNA, BO) if key in str(settings.redacted()) + str(settings)]
    assert bool({ANNA, BO} & set(settings.secrets())) == (owner != {"keys": {}})


JWT: dict[str, Any] = {"issuer": "https://issuer.test", "audience": ["antiphon"]}


@pytest.mark.parametrize(
    ("owner", "said"),
    [
        ({"jwt": {}}, "set jwt.issuer"),
        ({"jwt": {"issuer": "https://issuer.test"}}, "set jwt.audience"),
        ({"jwt": {**JWT, "audience": [""]}}, "set jwt.audience"),
        ({"jwt": {**JWT, "issuer": "issuer"}}, "set jwt.jwks"),
        ({"jwt": {**JWT, "jwks": "http://issuer.test/keys"}}, "must be https://"),
        ({"jwt": {**JWT, "jwks": "https://me:word@issuer.test/keys"}}, "without credentials"),
        ({"jwt": {**JWT, "jwks": "ftp://issuer.test/keys"}}, "must be an https:// URL"),
        ({"jwt": {**JWT, "algorithms": ["none"]}}, "owner.jwt.algorithms"),
        ({"jwt": {**JWT, "algorithms": ["HS256"]}}, "owner.jwt.algorithms"),
        ({"jwt": {**JWT, "algorithms": []}}, "owner.jwt.algorithms"),
        ({"jwt": JWT, "api_keys": [ANNA]}, "remove api_keys"),
        ({"jwt": JWT, "keys": {"anna": [ANNA]}}, "remove keys"),
        ({"jwt": JWT, "keys": {}}, "remove keys"),
        ({"jwt": JWT, "managed_keys": True}, "managed_keys to false"),
    ],
)
def test_contradictions_with_an_issuer_are_refused(owner: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load_settings({"owner": {"source": "jwt", **owner}, "upstream": {"auth": "none"}}, {})
    assert said in str(refused.value) and ANNA not in str(refused.value)


def test_tokens_of_an_issuer_reach_no_upstream() -> None:
    owner = {"source": "jwt", "jwt": JWT}
    with pytest.raises(
        ConfigError, match=r"owner.source: clients' tokens are only for this gateway.* set upstream\.auth"
    ):
        load_settings({"owner": owner, "upstream": {"auth": "passthrough"}}, {})
    settings = load_settings({"owner": owner, "upstream": {"auth": "none"}}, {})
    assert settings.owner.has_client_keys and settings.decides_chat and settings.owner.several
    for place in ("http://127.0.0.1:8000/keys", "http://[::1]/keys", "https://issuer.test/keys", "/etc/keys.json"):
        load_settings({"owner": {**owner, "jwt": {**JWT, "jwks": place}}, "upstream": {"auth": "none"}}, {})


def test_keys_of_clients_go_to_no_upstream() -> None:
    keys = {"ANTIPHON_OWNER__API_KEYS": "0123456789abcdef"}
    with pytest.raises(ConfigError, match=r"set upstream\.auth"):
        load_settings({}, keys)
    load_settings({"upstream": {"auth": "none"}}, keys)
    other = {"upstream": {"auth": "none"}, "upstreams": {"other": {"url": "http://x/v1"}}}
    with pytest.raises(ConfigError, match=r"set upstreams\.other\.auth"):
        load_settings(other, keys)


@pytest.mark.parametrize(
    ("environ", "name"),
    [
        ({}, "antiphon"),
        ({"OTEL_SERVICE_NAME": "theirs"}, "theirs"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "k8s.pod.name=p,service.name=my%20own"}, "my own"),
        ({"OTEL_SERVICE_NAME": "theirs", "OTEL_RESOURCE_ATTRIBUTES": "service.name=other"}, "theirs"),
        ({"OTEL_SERVICE_NAME": "theirs", "ANTIPHON_TRACING__SERVICE_NAME": "ours"}, "ours"),
    ],
)
def test_the_name_in_traces_may_be_opentelemetrys(environ: dict[str, str], name: str) -> None:
    assert load_settings({}, environ).tracing.service_name == name


_BASE = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}
_RATIO = {"OTEL_TRACES_SAMPLER": "ParentBased_TraceIdRatio"}


@pytest.mark.parametrize(
    ("environ", "found"),
    [
        ({}, {"traces_url": None, "sample": 1.0}),
        (_BASE, {"traces_url": "http://collector:4318/v1/traces"}),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "https://c/a/b/"}, {"traces_url": "https://c/a/b/v1/traces"}),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c/v1/traces"}, {"traces_url": "http://c/v1/traces/v1/traces"}),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": " "}, {"traces_url": None}),
        (_BASE | {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://t:1/x/"}, {"traces_url": "http://t:1/x/"}),
        (_BASE | {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": ""}, {"traces_url": "http://collector:4318/v1/traces"}),
        (_BASE | {"ANTIPHON_TRACING__ENDPOINT": "http://own"}, {"traces_url": "http://own/v1/traces"}),
        (_BASE | {"ANTIPHON_TRACING__TRACES_ENDPOINT": "http://own/t"}, {"traces_url": "http://own/t"}),
        (_BASE | {"OTEL_SDK_DISABLED": "True"}, {"traces_url": None, "enabled": False}),
        (_BASE | {"OTEL_SDK_DISABLED": "1"}, {"traces_url": "http://collector:4318/v1/traces"}),
        ({"ANTIPHON_TRACING__ENDPOINT": "http://own", "OTEL_SDK_DISABLED": "true"}, {"traces_url": None}),
        (
            {"ANTIPHON_TRACING__ENABLED": "true", "OTEL_SDK_DISABLED": "true", **_BASE},
            {"traces_url": "http://collector:4318/v1/traces"},
        ),
        ({"OTEL_TRACES_SAMPLER": "always_on", "OTEL_TRACES_SAMPLER_ARG": "0.5"}, {"sample": 1.0}),
        ({"OTEL_TRACES_SAMPLER": "parentbased_always_off"}, {"sample": 0.0}),
        ({"OTEL_TRACES_SAMPLER": "traceidratio"}, {"sample": 1.0}),
        (_RATIO | {"OTEL_TRACES_SAMPLER_ARG": "0.25"}, {"sample": 0.25}),
        (_RATIO | {"OTEL_TRACES_SAMPLER_ARG": "0.25", "ANTIPHON_TRACING__SAMPLE": "0.5"}, {"sample": 0.5}),
        ({"OTEL_TRACES_SAMPLER_ARG": "0.25"}, {"sample": 1.0}),
        # What would not be used may be wrong.
        ({"OTEL_TRACES_SAMPLER": "xray"}, {"sample": 1.0}),
        (_BASE | {"OTEL_TRACES_SAMPLER": "xray", "ANTIPHON_TRACING__SAMPLE": "0.5"}, {"sample": 0.5}),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "c:4317", "OTEL_SDK_DISABLED": "true"}, {"traces_url": None}),
    ],
)
def test_opentelemetrys_variables_are_defaults(environ: dict[str, str], found: dict[str, object]) -> None:
    tracing = load_settings({}, environ).tracing
    assert {name: getattr(tracing, name) for name in found} == found


def test_headers_of_opentelemetry_are_secrets_and_ours_win() -> None:
    given = {"OTEL_EXPORTER_OTLP_HEADERS": "Authorization=Basic%20a%3D%3D, x-team = blue,,x-key=theirs"}
    settings = load_settings({"tracing": {"headers": {"x-key": "ours"}}}, given)
    read = {name: value.get_secret_value() for name, value in settings.tracing.headers.items()}
    assert read == {"authorization": "Basic a==", "x-team": "blue", "x-key": "ours"}
    assert "a==" in settings.secrets() and "blue" not in str(settings.redacted())
    of_traces = {**given, "OTEL_EXPORTER_OTLP_TRACES_HEADERS": "x-only=this"}
    assert set(load_settings({}, of_traces).tracing.headers) == {"x-only"}


def test_each_unusable_variable_of_opentelemetry_is_named_without_its_value() -> None:
    environ = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "hidden:4317",
        "OTEL_EXPORTER_OTLP_HEADERS": "x=1,hidden",
        "OTEL_TRACES_SAMPLER": "traceidratio",
        "OTEL_TRACES_SAMPLER_ARG": "hidden",
    }
    with pytest.raises(ConfigError) as caught:
        load_settings({}, environ)
    said = str(caught.value)
    assert said.startswith("3 settings are wrong:") and "hidden" not in said
    assert "OTEL_EXPORTER_OTLP_ENDPOINT must be an http:// or https:// URL" in said
    assert "OTEL_EXPORTER_OTLP_HEADERS: entry 2 is not name=value" in said
    assert "OTEL_TRACES_SAMPLER_ARG must be a number from 0 to 1" in said
    with pytest.raises(
        ConfigError, match=r"OTEL_TRACES_SAMPLER must be one of always_on, .*; correct it, or set tracing.sample"
    ):
        load_settings({}, {**_BASE, "OTEL_TRACES_SAMPLER": "hidden"})


def test_a_model_reads_a_hundred_characters_of_a_call_at_least() -> None:
    assert load_settings({"tools": {"output_chars": 100}}).tools.output_chars == 100
    with pytest.raises(ConfigError, match="output_chars"):
        load_settings({"tools": {"output_chars": 99}})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("data: ''", "data is empty; leave the setting out"),
        ("data: '~/antiphon'", "data begins with ~, which only a shell expands"),
        ('data: "a\\0b"', "data contains a character that no path can have"),
        ("upstream: {ca_file: ''}", "upstream.ca_file is empty"),
        ("upstream: {url: 'http://a b/v1'}", "upstream.url: contains a space"),
        ('upstream: {url: "http://a/v1\\n"}', "upstream.url: contains a space, a line end"),
        ('upstream: {api_key: "sk-1\\n"}', "upstream.api_key: contains a line end"),
        ('upstream: {host: "a\\nb: c"}', "upstream.host: contains a line end"),
        ("upstream: {header_allow: ['x y']}", "upstream.header_allow[0]: is not a valid header name"),
        ("owner: {header: 'x y'}", "owner.header: is not a valid header name"),
        ("mcp: {connectors: {a: {url: http://a, headers: {'x y': k}}}}", "is not a valid header name"),
        ("listen: a:80:80", "listen: is not HOST:PORT"),
        ("listen: '[::1:80'", "listen: is not HOST:PORT"),
        ("listen: 'http://a:80'", "listen: is not HOST:PORT"),
        ("models: &x [*x]", "an alias refers to a node that contains the alias"),
        ("extensions: &x {a: {b: [*x]}}", "an alias refers to a node that contains the alias"),
    ],
)
def test_odd_values_are_refused_before_they_do_harm(file: Path, text: str, says: str) -> None:
    file.write_text(text)
    with pytest.raises(ConfigError) as failure:
        load_settings({}, {}, file)
    assert says in str(failure.value)


@pytest.mark.parametrize(
    "listen", ["127.0.0.1:80", ":80", "[::1]:80", "::1:80", "[::]:0", "a-b.example:80", "unix:/a b"]
)
def test_usual_addresses_are_taken(listen: str) -> None:
    assert load_settings({"listen": listen}).listen == listen


def test_aliases_in_a_file_are_no_circle(file: Path) -> None:
    file.write_text("upstreams: {a: &x {url: http://a/v1}, b: *x, c: *x}")
    assert load_settings({}, {}, file).upstreams["c"].url == "http://a/v1"


@pytest.mark.parametrize("url", ["http://[hunter2hunter2", "http://me:hunter2hunter2@h", "http://h:hunter2hunter2"])
def test_a_broken_endpoint_of_opentelemetry_is_refused_without_its_text(url: str) -> None:
    with pytest.raises(ConfigError, match=r"tracing\.traces_endpoint: ") as failure:
        load_settings(environ={"OTEL_EXPORTER_OTLP_ENDPOINT": url})
    assert "hunter2" not in str(failure.value)
