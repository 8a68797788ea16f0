// An address that the device may not use any more is not to be had from the mapping.
import IOMMU

func useAfterUnmap(_ device: Device) throws(DMAError) -> IOVA {
  let mapping = try device.dma.map(try device.dma.buffer(byteCount: 64), .toDevice)
  _ = try mapping.unmap()
  return mapping.address
}
// expected-error: 'mapping' used after consume
