"""CogView3 as ComfyUI nodes: copy this folder to ComfyUI/custom_nodes/cogview3, beside `pip install cogview3`."""

try:
    from .nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS
except ImportError as error:
    raise ImportError(f"the CogView3 nodes need the package cogview3 in ComfyUI's Python: {error}") from error

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
