"""What a pipeline can be told to save memory or time, beside diffusers' own switches for offloading."""

from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from cogview3.generation import inputs
from cogview3.generation.compiling import compile_networks


class SwitchesMixin(DiffusionPipeline):
    """For pipelines with a `vae` and a `vae_scale_factor`.

    Attributes:
        compiled: whether the networks' blocks are compiled, see `compile_networks`.
        vae_tile_size: side in pixels of the tiles that the VAE works in where a call cuts nothing; None never cuts.
    """

    compiled: bool = False
    vae_tile_size: int | None = None

    def enable_vae_slicing(self) -> None:
        """Encode and decode one picture at a time, to save memory."""
        self.vae.enable_slicing()

    def disable_vae_slicing(self) -> None:
        """Encode and decode whole batches again."""
        self.vae.disable_slicing()

    def enable_vae_tiling(self, tile_size: int = 512) -> None:
        """Encode and decode larger pictures in overlapping tiles of `tile_size` pixels, a multiple of 64.

        The UNets still see whole pictures, unless a call is given `tile_size`, which then counts for the VAE as well.

        Raises:
            UserError: a side that is no multiple of 64.
        """
        inputs.check_side("tile_size", tile_size, 8 * self.vae_scale_factor)
        self.vae_tile_size = tile_size

    def disable_vae_tiling(self) -> None:
        """Encode and decode pictures whole again."""
        self.vae_tile_size = None

    def compile_networks(self, graphs: bool = False, dynamic: bool | None = True, backend: str = "inductor") -> None:
        """Compile UNets and VAE block by block, at their first use; see `generation.compiling.compile_networks`."""
        compile_networks(self, graphs, dynamic, backend)
        self.compiled = True
