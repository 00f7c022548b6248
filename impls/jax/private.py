"""Every name of JAX that its authors do not promise to keep, in one place.

A new version may rename or change each of them. tests/impls/test_private.py looks for each, and pyproject.toml bounds
the version. The worker proves that the events are still sent, before it measures anything.
"""

NAMES = (  # module, and the name in it
    ("jax.monitoring", "register_event_duration_secs_listener"),
    ("jax.profiler", "ProfileData.from_file"),
)
COMPILE_EVENTS = "/jax/core/compile/"  # start of the names of the events that JAX sends when it traces or compiles
PLAIN = {"XLA_FLAGS": "--xla_cpu_experimental_ynn_fusion_type="}  # hands nothing to YNNPACK
THREADS = "PJRT_NPROC"  # environment variable: threads of XLA's CPU client
