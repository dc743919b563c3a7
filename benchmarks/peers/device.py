"""The devices that JAX (`ours`) and torch see; asked in a process of its own, for JAX takes most of a GPU's memory."""

from benchmarks.peers.reading import Reading


def read(way: str) -> Reading:
    if way == "ours":
        import jax

        from train.monitor.model_flops import peak_flops

        device = jax.devices()[0]
        return {"platform": device.platform, "name": device.device_kind, "peak": peak_flops(device)}
    import torch

    return {"platform": "gpu" if torch.cuda.is_available() else "cpu"}
