// Two owners of one buffer.
import IOMMU

func copyBuffer(_ device: Device) throws(DMAError) -> [DMABuffer] {
  let buffer = try device.dma.buffer(byteCount: 64)
  return [buffer]
}
// expected-error: 'DMABuffer' does not conform to protocol 'Copyable'
