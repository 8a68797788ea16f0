// The addresses may be somebody else's by then.
import IOMMU

func addressAfterDestroy(_ device: Device) throws(DMAError) -> IOVA {
  let linked = try device.dma.reserve(byteCount: 4096).sync()
  _ = try linked.destroy()
  return linked.address
}
// expected-error: 'linked' used after consume
