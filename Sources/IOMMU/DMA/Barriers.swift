import CIOMMU

/// Orders earlier stores to memory shared with a device before later ones. The corresponding kernel macro is `dma_wmb`.
@inline(__always) func dmaWriteBarrier() { ci_dma_wmb() }
/// Orders earlier loads from memory shared with a device before later ones. The corresponding kernel macro is `dma_rmb`.
@inline(__always) func dmaReadBarrier() { ci_dma_rmb() }
