"""What we rely on in other packages: that each name is there, and what we take it for.

A new release that has it otherwise fails here by name, not in a user's server. docs/architecture.md lists the same
names, and what we need them for.
"""

from __future__ import annotations

import ast
import dis
import inspect
import logging
import re
import signal
import uuid
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from pkgutil import walk_packages
from types import CodeType
from typing import Any

import gunicorn
import pytest
from gunicorn.workers.gthread import ThreadWorker

import gunicorn_sticky

PACKAGE = Path(gunicorn_sticky.__file__).parent
TABLE = (PACKAGE.parent / "docs" / "architecture.md").read_text()
#: What is not installed here: test_frameworks.py runs their cases where it is.
ELSEWHERE = ("mcp", "nicegui")
#: Whose public names are documented where we use them, so that only what is not public, or overridden, needs a case.
DOCUMENTED = ("gevent", "engineio", "socketio", "simple_websocket", "uvicorn", "uvicorn_worker")

Check = Callable[[Any], None]


def resolve(name: str) -> Any:
    """Return what has this name, from a module on; `Class()` in it is a new object."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            module = import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        found: Any = module
        for part in parts[end:]:
            found = getattr(found, part.removesuffix("()"))
            found = found() if part.endswith("()") else found
        return found
    raise AssertionError(f"there is no {name}")


def code_of(found: Any) -> Iterator[CodeType]:
    """Yield the code of a function or property, and of what is defined in there."""
    function: Any = found.fget if isinstance(found, property) else found
    function = inspect.unwrap(function)
    codes = [function.__code__]
    while codes:
        code = codes.pop()
        yield code
        codes += [constant for constant in code.co_consts if isinstance(constant, CodeType)]


#: What the loop over an HTTP/2 connection calls for each request.
SERVES_A_STREAM = "_serve_http2_stream" if hasattr(ThreadWorker, "_serve_http2_stream") else "handle_http2_request"


# --- shapes ---


def all_of(*checks: Check) -> Check:
    def check(found: Any) -> None:
        for part in checks:
            part(found)

    return check


def takes(*names: str) -> Check:
    """A function, or a class, with these parameters."""

    def check(found: Any) -> None:
        assert tuple(inspect.signature(found).parameters) == names

    return check


def takes_first(*names: str) -> Check:
    """A function whose first parameters are these."""

    def check(found: Any) -> None:
        assert tuple(inspect.signature(found).parameters)[: len(names)] == names

    return check


def uses(*names: str) -> Check:
    """A function or property in whose code these names, or strings, occur."""

    def check(found: Any) -> None:
        there: set[Any] = set()
        for code in code_of(found):
            there.update(code.co_names, *(c if isinstance(c, tuple) else (c,) for c in code.co_consts))
        assert set(names) <= there

    return check


#: Attributes that are not set by a class, but in its methods.
STORED: set[str] = set()


def stores(*names: str) -> Check:
    """A function that sets these attributes."""
    STORED.update(names)

    def check(found: Any) -> None:
        instructions = (i for code in code_of(found) for i in dis.get_instructions(code))
        assert set(names) <= {i.argval for i in instructions if i.opname == "STORE_ATTR"}

    return check


def has(*names: str) -> Check:
    """Something with these attributes."""

    def check(found: Any) -> None:
        assert [name for name in names if not hasattr(found, name)] == []

    return check


def contains(*items: Any) -> Check:
    def check(found: Any) -> None:
        assert [item for item in items if item not in found] == []

    return check


def returns(value: Any, *args: Any) -> Check:
    def check(found: Any) -> None:
        assert found(*args) == value

    return check


def equals(value: Any) -> Check:
    def check(found: Any) -> None:
        assert found == value

    return check


def is_a(*types: type) -> Check:
    def check(found: Any) -> None:
        assert isinstance(found, types)

    return check


def is_subclass_of(name: str) -> Check:
    def check(found: Any) -> None:
        assert issubclass(found, resolve(name))

    return check


def is_base_of(*names: str) -> Check:
    def check(found: Any) -> None:
        assert [name for name in names if not issubclass(resolve(name), found)] == []

    return check


def registers_itself(setting_class: Any) -> None:
    known = resolve("gunicorn.config.KNOWN_SETTINGS")
    before = list(known)
    try:

        class Some(setting_class):
            name = "some"
            validator = lambda val: val * 2  # noqa: E731
            default = 2
            desc = "Some."

        assert known[len(before) :] == [Some]
        assert Some().get() == 4
    finally:
        known[:] = before


def validates_callables(validate_callable: Any) -> None:
    two = lambda one, other: None  # noqa: E731
    assert validate_callable(2)(two) is two
    with pytest.raises(TypeError):
        validate_callable(2)(lambda one: None)


def gives_loggers(found: Any) -> None:
    assert logging.getLogger(__name__) in found()
    assert all(isinstance(logger, logging.Logger) for logger in found())


def watches_until_closed(name: str) -> Check:
    """What a socket of gevent's has until it is closed."""

    def check(_found: Any) -> None:
        client = resolve("gevent.socket.socket")()
        assert callable(getattr(client, name).stop)
        client.close()
        assert getattr(client, name) is None

    return check


def reads_what_there_is(read: Any) -> None:
    unreader = resolve("gunicorn.http.unreader.IterUnreader")(iter([b"ab", b"c"]))
    assert read(unreader) == b"ab"
    unreader.unread(b"b")
    assert [read(unreader), read(unreader), read(unreader)] == [b"b", b"c", b""]


def is_also_of_managers(name: str, manager: str = "Manager") -> Check:
    def check(shared: Any) -> None:
        alone = resolve(f"socketio.{manager}.{name}")
        assert alone is not shared
        assert [*inspect.signature(alone).parameters] == [*inspect.signature(shared).parameters]

    return check


def lists_groups(groups: Any) -> None:
    assert "positional arguments" in [group.title for group in groups]


def can_be_replaced(_found: Any) -> None:
    spec = import_module("gunicorn.errors").__spec__
    assert spec is not None
    loader: Any = spec.loader
    loader.exec_module = lambda module: None
    del loader.exec_module


def accepts_descriptors(_found: Any) -> None:
    bare = resolve("_socket.socket")
    listener, client = bare(), bare()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    client.connect(listener.getsockname())
    fd, address = listener._accept()
    assert address == client.getsockname()
    for end in (bare(fileno=fd), client, listener):
        end.close()


def makes_bare_sockets(socketpair: Any) -> None:
    for end in socketpair():
        assert type(end) is resolve("_socket.socket")
        end.close()


def gives_what_was_patched(get_original: Any) -> None:
    assert get_original("time", "sleep") is not resolve("gevent.sleep")
    assert get_original("time", "sleep").__module__ == "time"


def is_uuid4(found: Any) -> None:
    assert found is uuid.uuid4


CASES: dict[str, Check] = {
    "gunicorn.config.KNOWN_SETTINGS": is_a(list),
    "gunicorn.config.Setting": registers_itself,
    "gunicorn.config.Setting.add_option": takes("self", "parser"),
    "gunicorn.config.Setting.get": takes("self"),
    "gunicorn.config.Workers": has("default", "validator"),
    "gunicorn.config.Workers.validator": returns(3, "3"),
    "gunicorn.config.validate_bool": returns(True, "true"),
    "gunicorn.config.validate_callable": validates_callables,
    "gunicorn.config.validate_pos_int": returns(3, "3"),
    "gunicorn.config.validate_string": returns("a", " a "),
    "gunicorn.config.validate_string_to_addr_list": returns(["10.0.0.0/8"], "10.0.0.0/8"),
    "gunicorn.config.validate_string_to_list": returns(["a", "b"], "a, b"),
    "gunicorn.config.Config.__init__": stores("settings", "env_orig"),
    "gunicorn.config.Config.__getattr__": takes("self", "name"),
    "gunicorn.config.Config.set": takes("self", "name", "value"),
    "gunicorn.config.Config.worker_class": uses("load_class", "setup"),
    "gunicorn.config.Config.worker_class_str": uses("settings"),
    "gunicorn.util.load_class": returns(Path, Path),
    "gunicorn.app.base.Arbiter": is_subclass_of("gunicorn.arbiter.Arbiter"),
    "gunicorn.app.base.BaseApplication.__init__": stores("cfg"),
    "gunicorn.app.base.BaseApplication.run": uses("Arbiter", "RuntimeError"),
    "gunicorn.app.base.BaseApplication.load_default_config": takes("self"),
    "gunicorn.app.wsgiapp.WSGIApplication": takes("usage", "prog"),
    "gunicorn.arbiter.Arbiter.__init__": all_of(
        takes("self", "app"),
        stores(
            "_last_logged_active_worker_count",
            "_control_server",
            "worker_age",
            "reexec_pid",
            "master_pid",
            "master_name",
            "pidfile",
            "systemd",
            "SIG_QUEUE",
        ),
    ),
    "gunicorn.arbiter.Arbiter.signal": uses("SIG_QUEUE", "put_nowait"),
    "gunicorn.arbiter.Arbiter.wakeup": uses("SIG_QUEUE", "put_nowait"),
    "gunicorn.arbiter.Arbiter.SIGNALS": contains(signal.SIGTERM, signal.SIGHUP),
    "gunicorn.arbiter.Arbiter.LISTENERS": equals([]),
    "gunicorn.arbiter.Arbiter.WORKERS": equals({}),
    "gunicorn.arbiter.Arbiter.setup": all_of(
        takes("self", "app"), stores("cfg", "log", "worker_class", "num_workers", "timeout", "proc_name")
    ),
    "gunicorn.arbiter.Arbiter.start": all_of(takes("self"), stores("pid", "LISTENERS", "master_pid", "pidfile")),
    "gunicorn.arbiter.Arbiter.run": uses(
        "start",
        "manage_workers",
        "maybe_promote_master",
        "wait_for_signals",
        "murder_workers",
        "HaltServer",
        "halt",
    ),
    "gunicorn.arbiter.Arbiter._get_num_workers": takes("self"),
    "gunicorn.arbiter.Arbiter._set_num_workers": takes("self", "value"),
    "gunicorn.arbiter.Arbiter.num_workers": is_a(property),
    "gunicorn.arbiter.Arbiter.spawn_worker": all_of(
        takes("self"), uses("worker_age", "worker_class", "fork", "WORKERS", "tmp", "init_process")
    ),
    "gunicorn.arbiter.Arbiter.kill_worker": all_of(takes("self", "pid", "sig"), uses("kill", "WORKERS")),
    "gunicorn.arbiter.Arbiter.kill_workers": uses("kill_worker"),
    "gunicorn.arbiter.Arbiter.manage_workers": takes("self"),
    "gunicorn.arbiter.Arbiter.reap_workers": all_of(takes("self"), uses("waitpid", "WORKERS", "HaltServer")),
    "gunicorn.arbiter.Arbiter.handle_chld": all_of(takes("self"), uses("reap_workers")),
    "gunicorn.arbiter.Arbiter.reload": all_of(
        takes("self"), uses("setup", "spawn_worker", "manage_workers", "reap_workers")
    ),
    "gunicorn.arbiter.Arbiter.wait_for_signals": all_of(
        takes("self", "timeout"), uses("SIG_QUEUE", "get", "get_nowait", "Empty")
    ),
    "gunicorn.arbiter.Arbiter.murder_workers": all_of(takes("self"), uses("last_update", "monotonic")),
    "gunicorn.arbiter.Arbiter.handle_usr1": takes("self"),
    "gunicorn.arbiter.Arbiter.handle_winch": all_of(takes("self"), uses("num_workers", "kill_workers")),
    "gunicorn.arbiter.Arbiter.stop": all_of(
        takes("self", "graceful"), uses("kill_workers", "reap_workers", "graceful_timeout")
    ),
    "gunicorn.arbiter.Arbiter.reexec": all_of(
        takes("self"), uses("env_orig", "fork", "execvpe", "reexec_pid", "master_pid")
    ),
    "gunicorn.arbiter.Arbiter.maybe_promote_master": all_of(takes("self"), uses("getppid", "master_pid", "pidfile")),
    "gunicorn.arbiter.Arbiter._start_control_server": all_of(takes("self"), stores("_control_server")),
    "gunicorn.pidfile.Pidfile": all_of(takes("fname"), has("unlink")),
    "gunicorn.errors.HaltServer": takes("reason", "exit_status"),
    "gunicorn.errors.HaltServer.__init__": stores("reason", "exit_status"),
    "gunicorn.errors.HaltServer.__str__": takes("self"),
    "gunicorn.errors.ConfigError": is_subclass_of("builtins.Exception"),
    "gunicorn.sock.TCPSocket": has("get_backlog", "close", "FAMILY"),
    "gunicorn.util._setproctitle": takes("title"),
    "gunicorn.util.set_owner_process": takes("uid", "gid", "initgroups"),
    "gunicorn.workers.workertmp.WorkerTmp": all_of(takes("cfg"), has("notify", "last_update", "fileno", "close")),
    "gunicorn.glogging.loggers": gives_loggers,
    "gunicorn.glogging.Logger.reopen_files": all_of(takes("self"), uses("close", "_open")),
    "gunicorn.instrument.statsd.COUNTER_TYPE": equals("counter"),
    "gunicorn.instrument.statsd.GAUGE_TYPE": equals("gauge"),
    "gunicorn.instrument.statsd.Statsd.__init__": stores("sock"),
    "gunicorn.instrument.statsd.Statsd._sock_send": uses("sock", "send"),
    "gunicorn.instrument.statsd.Statsd.log": uses("METRIC_VAR", "VALUE_VAR", "MTYPE_VAR"),
    "gunicorn.ctl.server.ControlSocketServer.__init__": stores("handlers"),
    "gunicorn.ctl.handlers.CommandHandlers.__init__": takes("self", "arbiter"),
    "gunicorn.ctl.handlers.CommandHandlers.show_workers": uses("workers", "pid"),
    "gunicorn.ctl.handlers.CommandHandlers.show_all": uses("web_workers", "pid"),
    "gunicorn.ctl.handlers.CommandHandlers.show_stats": takes("self"),
    "gunicorn.workers.base.Worker.__init__": all_of(
        takes("self", "age", "ppid", "sockets", "app", "timeout", "cfg", "log"),
        stores("age", "pid", "sockets", "cfg", "log", "tmp", "nr", "max_requests", "alive"),
    ),
    "gunicorn.workers.base.Worker.init_process": all_of(takes("self"), uses("init_signals", "load_wsgi", "run")),
    "gunicorn.workers.base.Worker.notify": takes("self"),
    "gunicorn.workers.base.Worker.handle_exit": all_of(takes("self", "sig", "frame"), stores("alive")),
    "gunicorn.workers.base.Worker.handle_usr1": takes("self", "sig", "frame"),
    "gunicorn.workers.base.Worker.load_wsgi": all_of(takes("self"), stores("wsgi")),
    "gunicorn.workers.base_async.AsyncWorker.__init__": takes("self", "args", "kwargs"),
    "gunicorn.workers.base_async.AsyncWorker.handle": all_of(
        takes("self", "listener", "client", "addr"), uses("getsockname", "get_parser", "next", "StopIteration")
    ),
    "gunicorn.workers.base_async.AsyncWorker.handle_request": uses("max_requests", "nr", "alive"),
    "gunicorn.workers.base_async.AsyncWorker.handle_http2": uses("alive", "receive_data", SERVES_A_STREAM),
    "gunicorn.workers.ggevent.GeventWorker": has("server_class", "handle", "timeout_ctx"),
    "gunicorn.workers.ggevent.GeventWorker.run": all_of(
        takes("self"),
        uses(
            "server_class",
            "sockets",
            "Pool",
            "start",
            "alive",
            "notify",
            "close",
            "free_count",
            "graceful_timeout",
            "stop",
        ),
    ),
    "gunicorn.workers.ggevent.GeventWorker.patch": all_of(takes("self"), uses("patch_all", "sockets")),
    "gunicorn.workers.ggevent.GeventWorker.init_process": all_of(takes("self"), uses("patch", "reinit")),
    "gunicorn.workers.ggevent.GeventWorker.notify": takes("self"),
    "gunicorn.workers.ggevent.GeventWorker.handle_usr1": takes("self", "sig", "frame"),
    "gunicorn.workers.gthread.ThreadWorker.__init__": all_of(
        takes("self", "args", "kwargs"), stores("nr_conns", "keepalived_conns", "method_queue", "_accepting")
    ),
    "gunicorn.workers.gthread.ThreadWorker.run": all_of(
        takes("self"),
        uses(
            "set_accept_enabled",
            "_accepting",
            "nr_conns",
            "alive",
            "notify",
            "wait_for_and_dispatch_events",
            "graceful_timeout",
            "sockets",
        ),
    ),
    "gunicorn.workers.gthread.ThreadWorker.init_process": all_of(
        takes("self"), uses("get_thread_pool", "method_queue"), stores("tpool", "poller")
    ),
    "gunicorn.workers.gthread.ThreadWorker.get_thread_pool": takes("self"),
    "gunicorn.workers.gthread.ThreadWorker.handle_exit": all_of(takes("self", "sig", "frame"), uses("alive", "defer")),
    "gunicorn.workers.gthread.ThreadWorker.set_accept_enabled": takes("self", "enabled"),
    "gunicorn.workers.gthread.ThreadWorker.wait_for_and_dispatch_events": all_of(
        takes("self", "timeout"), uses("poller", "select", "data", "fileobj")
    ),
    "gunicorn.workers.gthread.ThreadWorker.accept": takes("self", "listener"),
    "gunicorn.workers.gthread.ThreadWorker.enqueue_req": all_of(
        takes("self", "conn"), uses("submit", "handle", "add_done_callback", "defer", "finish_request")
    ),
    "gunicorn.workers.gthread.ThreadWorker.handle": all_of(
        takes("self", "conn"), uses("init", "parser", "next", "handle_request", "StopIteration")
    ),
    "gunicorn.workers.gthread.ThreadWorker.handle_request": uses("max_requests", "nr", "alive"),
    "gunicorn.workers.gthread.ThreadWorker.handle_http2": all_of(
        takes("self", "conn"), uses("alive", "receive_data", SERVES_A_STREAM)
    ),
    "gunicorn.workers.gthread.ThreadWorker._serve_http2_stream": uses("handle_http2_request"),
    "gunicorn.workers.gthread.ThreadWorker.finish_request": all_of(
        takes("self", "conn", "fs"), uses("keepalived_conns", "on_client_socket_readable", "nr_conns", "close")
    ),
    "gunicorn.workers.gthread.ThreadWorker.on_client_socket_readable": all_of(
        takes("self", "conn", "client"), uses("poller", "unregister", "keepalived_conns", "enqueue_req")
    ),
    "gunicorn.workers.gthread.ThreadWorker.murder_keepalived": uses("keepalived_conns", "nr_conns", "close"),
    "gunicorn.workers.gthread.PollableMethodQueue.defer": takes("self", "callback", "args"),
    "gunicorn.workers.gthread.TConn.__init__": all_of(
        takes("self", "cfg", "sock", "client", "server"), stores("parser", "initialized")
    ),
    "gunicorn.workers.gthread.TConn.init": all_of(takes("self"), uses("setblocking", "parser"), stores("initialized")),
    "gunicorn.workers.gthread.TConn.close": takes_first("self"),
    "gunicorn.version_info": is_a(tuple),
    "gunicorn.__version__": is_a(str),
    "gunicorn.workers.gasgi.ASGIWorker.__init__": all_of(
        takes("self", "args", "kwargs"), stores("worker_connections", "loop", "nr_conns", "_quick_shutdown")
    ),
    "gunicorn.workers.gasgi.ASGIWorker.init_process": takes("self"),
    "gunicorn.workers.gasgi.ASGIWorker._serve": all_of(
        takes("self"), uses("sockets", "create_server", "sock", "servers", "alive", "notify", "_shutdown")
    ),
    "gunicorn.workers.gasgi.ASGIWorker._shutdown": uses(
        "servers", "close", "wait_closed", "nr_conns", "graceful_timeout"
    ),
    "gunicorn.workers.gasgi.ASGIWorker._cleanup": all_of(takes("self"), uses("cancel", "_quick_shutdown", "wait_for")),
    "gunicorn.workers.gasgi.ASGIWorker.handle_exit_signal": takes("self"),
    "gunicorn.workers.gasgi.ASGIWorker.handle_quit_signal": all_of(takes("self"), stores("_quick_shutdown")),
    "gunicorn.asgi.protocol.ASGIProtocol.__init__": all_of(
        takes("self", "worker"),
        stores(
            "app",
            "worker",
            "cfg",
            "_closed",
            "_task",
            "_callback_parser",
            "_current_request",
            "_request_ready",
            "_proxy_protocol",
            "_h2c_upgrade_settings",
        ),
    ),
    "gunicorn.asgi.protocol.ASGIProtocol.connection_made": all_of(
        takes("self", "transport"), uses("prior_knowledge_allowed")
    ),
    "gunicorn.asgi.protocol.ASGIProtocol.data_received": all_of(
        takes("self", "data"), uses("_callback_parser", "_websocket", "reader")
    ),
    "gunicorn.asgi.protocol.ASGIProtocol.connection_lost": all_of(takes("self", "exc"), uses("_task")),
    "gunicorn.asgi.protocol.ASGIProtocol._check_h1c_protocol_available": takes(),
    "gunicorn.asgi.protocol.ASGIProtocol._setup_callback_parser": all_of(
        takes("self"), uses("cfg", "_on_headers_complete", "_on_message_complete")
    ),
    "gunicorn.asgi.protocol.ASGIProtocol._on_headers_complete": all_of(takes("self"), stores("_current_request")),
    "gunicorn.asgi.protocol.ASGIProtocol._on_message_complete": takes("self"),
    "gunicorn.asgi.protocol.ASGIProtocol._handle_connection": uses(
        "_closed", "_request_ready", "reset", "_close_transport", "worker", "alive", "nr", "max_requests"
    ),
    "gunicorn.asgi.protocol.ASGIProtocol._start_http1": takes("self", "buffered"),
    "gunicorn.asgi.protocol.ASGIProtocol._will_close": takes("self", "request", "response_requires_close"),
    "gunicorn.asgi.protocol.ASGIProtocol._is_websocket_upgrade": takes("self", "request"),
    "gunicorn.asgi.protocol.ASGIProtocol._effective_peername": takes("self", "peername"),
    "gunicorn.asgi.protocol.ASGIProtocol._arm_keepalive_timer": uses("worker", "loop", "call_later"),
    "gunicorn.asgi.protocol.ASGIProtocol._cancel_keepalive_timer": takes("self"),
    "gunicorn.asgi.parser.PythonProtocol": has("remaining", "reset", "proxy_protocol_info"),
    "gunicorn.asgi.protocol.ASGIProtocol._handle_http2_connection": all_of(
        takes("self", "transport", "ssl_object", "upgrade"), uses("worker", "alive", "_start_http2_stream")
    ),
    "gunicorn.asgi.protocol.ASGIProtocol._start_http2_stream": takes("self", "req", "h2_conn", "sockname", "peername"),
    "gunicorn.http2.negotiation.prior_knowledge_allowed": takes("cfg", "peer_addr"),
    "uvicorn_worker.UvicornWorker.__init__": stores("config"),
    "uvicorn_worker.UvicornWorker._serve": all_of(
        takes("self"), uses("config", "wsgi", "serve", "started", "WORKER_BOOT_ERROR")
    ),
    "uvicorn_worker.UvicornWorker.run": uses("_serve"),
    "uvicorn_worker.UvicornWorker.init_process": takes("self"),
    "uvicorn.server.Server.__init__": all_of(
        takes("self", "config"), stores("server_state", "should_exit", "force_exit")
    ),
    "uvicorn.server.Server.startup": all_of(takes("self", "sockets"), stores("started", "servers")),
    "uvicorn.server.Server.on_tick": all_of(
        takes("self", "counter"), uses("should_exit", "callback_notify", "timeout_notify")
    ),
    "uvicorn.server.Server.shutdown": all_of(
        takes("self", "sockets"), uses("connections", "timeout_graceful_shutdown", "force_exit", "lifespan")
    ),
    "uvicorn.server.Server.handle_exit": takes("self", "sig", "frame"),
    "uvicorn.protocols.http.h11_impl.H11Protocol.__init__": all_of(
        takes_first("self", "config", "server_state", "app_state", "_loop"),
        stores("conn", "app", "cycle", "ws_protocol_class"),
    ),
    "uvicorn.protocols.http.h11_impl.H11Protocol.handle_events": all_of(
        takes("self"), stores("cycle"), uses("on_response_complete")
    ),
    "uvicorn.protocols.http.h11_impl.H11Protocol.on_response_complete": all_of(
        takes("self"), uses("loop", "call_later")
    ),
    "uvicorn.protocols.http.h11_impl.H11Protocol.handle_websocket_upgrade": takes("self", "event"),
    "uvicorn.protocols.http.h11_impl.H11Protocol._unset_keepalive_if_required": takes("self"),
    "uvicorn.protocols.http.h11_impl.RequestResponseCycle.__init__": stores("response_complete"),
    "uvicorn.protocols.http.httptools_impl.HttpToolsProtocol.__init__": all_of(
        takes_first("self", "config", "server_state", "app_state", "_loop"),
        stores("app", "cycle", "pipeline", "ws_protocol_class"),
    ),
    "uvicorn.protocols.http.httptools_impl.HttpToolsProtocol.on_message_begin": all_of(takes("self"), stores("scope")),
    "uvicorn.protocols.http.httptools_impl.RequestResponseCycle.__init__": stores("scope", "response_complete"),
    "uvicorn.protocols.http.httptools_impl.HttpToolsProtocol.on_headers_complete": all_of(
        takes("self"), stores("cycle")
    ),
    "uvicorn.protocols.http.httptools_impl.HttpToolsProtocol.on_message_complete": takes("self"),
    "uvicorn.protocols.http.httptools_impl.HttpToolsProtocol.on_response_complete": all_of(
        takes("self"), uses("loop", "call_later")
    ),
    "uvicorn.protocols.http.httptools_impl.HttpToolsProtocol.handle_websocket_upgrade": takes("self"),
    "gunicorn.http.parser.RequestParser.mesg_class": is_subclass_of("gunicorn.http.message.Request"),
    "gunicorn.http.parser.Parser.__init__": stores("mesg"),
    "gunicorn.http.parser.Parser.__next__": uses("mesg_class", "req_count", "unreader", "source_addr"),
    "gunicorn.http.message.Message.__init__": stores("must_close", "body"),
    "gunicorn.http.message.Message.should_close": all_of(takes("self"), uses("must_close", "headers")),
    "gunicorn.http.body.LengthReader.read": stores("length"),
    "gunicorn.http.body.Body.__init__": stores("reader"),
    "gunicorn.http.message.Request.__init__": all_of(
        takes("self", "cfg", "unreader", "peer_addr", "req_number"), stores("proxy_protocol_info")
    ),
    "gunicorn.http.unreader.SocketUnreader.__init__": stores("sock"),
    "gunicorn.http.unreader.IterUnreader": takes("iterable"),
    "gunicorn.http.unreader.Unreader.read": reads_what_there_is,
    "gunicorn.http.unreader.Unreader.unread": takes("self", "data"),
    "gunicorn.http.errors.NoMoreData": is_subclass_of("builtins.Exception"),
    "gunicorn.http.errors.ParseException": is_base_of(
        "gunicorn.http.errors.InvalidRequestLine",
        "gunicorn.http.errors.InvalidRequestMethod",
        "gunicorn.http.errors.InvalidHTTPVersion",
        "gunicorn.http.errors.LimitRequestLine",
    ),
    "gunicorn.http.wsgi.default_environ": uses("gunicorn.socket"),
    "gevent.baseserver.BaseServer.__init__": all_of(
        takes("self", "listener", "handle", "spawn"), uses("set_listener", "set_spawn", "max_accept")
    ),
    "gevent.baseserver.BaseServer.set_listener": uses("accept", "family", "getsockname"),
    "gevent.baseserver.BaseServer.set_spawn": stores("pool", "_spawn"),
    "gevent.baseserver.BaseServer.set_handle": stores("_handle"),
    "gevent.baseserver.BaseServer._do_read": uses("max_accept", "full", "do_read", "do_handle"),
    "gevent.baseserver.BaseServer.do_handle": takes("self", "args"),
    "gevent.baseserver.BaseServer.start_accepting": all_of(takes("self"), uses("_watcher", "_do_read")),
    "gevent.baseserver.BaseServer.stop_accepting": takes("self"),
    "gevent.baseserver.BaseServer.full": takes("self"),
    "gevent.baseserver.BaseServer.started": is_a(property),
    "gevent.baseserver.BaseServer.closed": is_a(property),
    "gevent.baseserver.BaseServer.close": takes("self"),
    "gevent.server.StreamServer.__init__": takes("self", "listener", "handle", "backlog", "spawn", "ssl_args"),
    "gevent.server.StreamServer.do_read": takes("self"),
    "gevent.server.StreamServer.do_close": takes("self", "sock", "args"),
    "gevent.socket.socket._read_event": watches_until_closed("_read_event"),
    "gevent.socket.socket._write_event": watches_until_closed("_write_event"),
    "gevent.socket.socket.__init__": takes("self", "family", "type", "proto", "fileno"),
    "gevent.monkey.patch_all": uses("GeventDidPatchAllEvent"),
    "gevent.monkey.get_original": gives_what_was_patched,
    "gevent.pywsgi.WSGIHandler.handle_one_request": takes("self"),
    "gevent.pywsgi.WSGIHandler.read_request": takes("self", "raw_requestline"),
    "engineio.server.Server._handle_connect": all_of(
        takes("self", "environ", "start_response", "transport", "jsonp_index"), uses("generate_id")
    ),
    "engineio.async_server.AsyncServer._handle_connect": all_of(
        takes("self", "environ", "transport", "jsonp_index"), uses("generate_id")
    ),
    "engineio.base_server.BaseServer.generate_id": takes("self"),
    "mcp.server.streamable_http_manager.uuid4": is_uuid4,
    "mcp.server.sse.uuid4": is_uuid4,
    "nicegui.client.Client.__init__": all_of(uses("uuid4"), stores("id")),
    "engineio.async_drivers.gevent.SimpleWebSocketWSGI": is_a(type, type(None)),
    "engineio.async_drivers.gevent._async": contains("websocket"),
    "engineio.async_drivers.gevent.Thread": takes("target", "args", "kwargs"),
    "engineio.async_drivers._websocket_wsgi.SimpleWebSocketWSGI.__init__": takes("self", "handler", "server", "kwargs"),
    "simple_websocket.ws.Base.__init__": all_of(takes_first("self", "sock"), stores("sock")),
    "simple_websocket.ws.Base.send": uses("sock", "send"),
    "simple_websocket.ws.Server.__init__": uses("gunicorn.socket"),
    "socketio.PubSubManager.__init__": all_of(
        takes("self", "channel", "write_only", "logger", "json"), stores("channel", "write_only", "host_id")
    ),
    "socketio.PubSubManager.initialize": all_of(takes("self"), uses("start_background_task", "_thread", "write_only")),
    "socketio.PubSubManager._thread": uses("_listen", "loads"),
    "socketio.PubSubManager._publish": takes("self", "data"),
    "socketio.PubSubManager._listen": takes("self"),
    "socketio.PubSubManager.emit": is_also_of_managers("emit"),
    "socketio.PubSubManager.can_disconnect": is_also_of_managers("can_disconnect"),
    "socketio.PubSubManager.disconnect": is_also_of_managers("disconnect"),
    "socketio.PubSubManager.enter_room": is_also_of_managers("enter_room"),
    "socketio.PubSubManager.leave_room": is_also_of_managers("leave_room"),
    "socketio.PubSubManager.close_room": is_also_of_managers("close_room"),
    "socketio.Manager.initialize": takes("self"),
    "socketio.async_pubsub_manager.AsyncPubSubManager.__init__": all_of(
        takes("self", "channel", "write_only", "logger", "json"), stores("channel", "write_only", "host_id")
    ),
    "socketio.async_pubsub_manager.AsyncPubSubManager.initialize": all_of(
        takes("self"), uses("start_background_task", "_thread", "write_only")
    ),
    "socketio.async_pubsub_manager.AsyncPubSubManager._publish": takes("self", "data"),
    "socketio.async_pubsub_manager.AsyncPubSubManager._listen": takes("self"),
    "socketio.async_pubsub_manager.AsyncPubSubManager.emit": is_also_of_managers("emit", "AsyncManager"),
    "socketio.async_pubsub_manager.AsyncPubSubManager.can_disconnect": is_also_of_managers(
        "can_disconnect", "AsyncManager"
    ),
    "socketio.async_pubsub_manager.AsyncPubSubManager.disconnect": is_also_of_managers("disconnect", "AsyncManager"),
    "socketio.async_pubsub_manager.AsyncPubSubManager.enter_room": is_also_of_managers("enter_room", "AsyncManager"),
    "socketio.async_pubsub_manager.AsyncPubSubManager.leave_room": is_also_of_managers("leave_room", "AsyncManager"),
    "socketio.async_pubsub_manager.AsyncPubSubManager.close_room": is_also_of_managers("close_room", "AsyncManager"),
    "argparse.ArgumentParser()._action_groups": lists_groups,
    "importlib._bootstrap._module_locks": is_a(dict),
    "importlib.machinery.SourceFileLoader.exec_module": can_be_replaced,
    "logging.FileHandler._open": takes("self"),
    "_queue.SimpleQueue": has("get", "get_nowait", "put_nowait"),
    "_socket.socket": has("_accept", "sendmsg", "recvmsg_into"),
    "_socket.socket._accept": accepts_descriptors,
    "_socket.socketpair": makes_bare_sockets,
    "posix": has("close", "dup", "fork", "waitpid"),
}


#: What is not in older Gunicorns, or concerns a kind that needs a newer one.
NEW = "gunicorn.asgi", "gunicorn.workers.gasgi", "gunicorn.http2", "gunicorn.workers.gthread.ThreadWorker._serve_http2"
TOO_NEW = () if gunicorn.version_info >= (27, 0, 1) else NEW


def is_here(name: str) -> bool:
    package = name.partition(".")[0]
    return not name.startswith(TOO_NEW) and (package not in ELSEWHERE or find_spec(package) is not None)


@pytest.mark.parametrize("name", [name for name in CASES if is_here(name)])
def test_it_is_what_we_take_it_for(name):
    CASES[name](resolve(name))


def test_all_settings_that_we_read():
    found = set()
    for file in PACKAGE.rglob("*.py"):
        found.update(re.findall(r"(?<![\w.])(?:self\.|app\.|arbiter\.)?cfg\.(\w+)", file.read_text()))
    config = resolve("gunicorn.config.Config")()
    optional = {"protocol"}  # read if it is there
    assert "timeout" in config.settings
    assert "graceful_timeout" in config.settings
    assert [name for name in found - optional if not hasattr(config, name)] == []


# --- all of them ---


def test_table_in_the_documentation():
    section = TABLE.partition("## What we rely on in other packages\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `([\w.()]+)` \| .+ \| `([\w/.]+)` \|$", section, re.MULTILINE)
    assert [name for name, _file in rows] == list(CASES)
    assert [file for _name, file in rows if not (PACKAGE / file).is_file()] == []


def sources() -> Iterator[ast.AST]:
    for file in PACKAGE.rglob("*.py"):
        yield from ast.walk(ast.parse(file.read_text()))


def test_each_import_from_gunicorn_has_a_case():
    imported = {
        f"{node.module}.{alias.name}"
        for node in sources()
        if isinstance(node, ast.ImportFrom) and node.level == 0 and str(node.module).partition(".")[0] == "gunicorn"
        for alias in node.names
    }
    assert "gunicorn.arbiter.Arbiter" in imported
    assert [name for name in imported if not any(f"{case}.".startswith(f"{name}.") for case in CASES)] == []


def test_each_private_name_of_others_has_a_case():
    defined: set[str] = set()
    set_here: set[str] = set()
    of_self: set[str] = set()
    of_others: set[str] = set()
    for node in sources():
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            defined.add(node.name)
        elif isinstance(node, ast.Attribute) and re.match("_[a-z]", node.attr):
            if not isinstance(node.value, ast.Name):
                is_super = isinstance(node.value, ast.Call) and ast.unparse(node.value) == "super()"
                (of_self if is_super else of_others).add(node.attr)
            elif node.value.id in ("self", "cls"):
                (set_here if isinstance(node.ctx, ast.Store) else of_self).add(node.attr)
            else:
                of_others.add(node.attr)
    private = (of_self - defined - set_here) | (of_others - set_here)
    assert {"_accept", "_spawn", "_read_event"} <= private
    documented = {"_exit", "_replace"}  # of os, and of named tuples
    with_a_case = STORED | {part for case in CASES for part in case.split(".")}
    assert private - documented - with_a_case == set()


def overrides() -> Iterator[tuple[str, Any, Any]]:
    """Yield what our classes override in those of other packages: its name, ours, and theirs."""
    left_out = "__main__", *(("asgi_worker",) if TOO_NEW else ())
    names = [
        module.name
        for module in walk_packages([str(PACKAGE)], "gunicorn_sticky.")
        if module.name.rpartition(".")[2] not in left_out
    ]
    for module in map(import_module, names):
        for found in vars(module).values():
            if not isinstance(found, type) or found.__module__ != module.__name__:
                continue
            ours = [cls for cls in found.__mro__ if cls.__module__.startswith("gunicorn_sticky.")]
            theirs = [cls for cls in found.__mro__ if cls.__module__.partition(".")[0] in ("gunicorn", *DOCUMENTED)]
            for cls in ours:
                for name, value in vars(cls).items():
                    if inspect.isfunction(value) or isinstance(value, (property, classmethod)):
                        for base in theirs:
                            if name in vars(base):
                                yield name, value, base
                                break


def test_each_override_has_a_case():
    """Ours takes what theirs is called with."""
    cases = (case.rpartition(".") for case in CASES if is_here(case))
    owners = [(resolve(owner), name) for owner, _, name in cases if owner]
    seen, missing = set(), []
    for name, ours, base in overrides():
        seen.add(name)
        if not any(last == name and isinstance(owner, type) and issubclass(owner, base) for owner, last in owners):
            missing.append(f"{base.__module__}.{base.__qualname__}.{name}")
        if inspect.isfunction(ours) and name != "__init__":
            parameters = inspect.signature(vars(base)[name]).parameters.values()
            inspect.signature(ours).bind(*(p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD))
    assert {"manage_workers", "do_read", "_publish", "init_process", "show_all"} <= seen
    assert missing == []
