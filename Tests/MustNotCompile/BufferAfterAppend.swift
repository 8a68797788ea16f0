// A buffer in a list is the list's.
import IOMMU

func bufferAfterAppend(_ device: Device) throws(DMAError) {
  var buffer = try device.dma.buffer(byteCount: 64)
  var list = ScatterList()
  list.append(buffer)
  buffer.store(UInt8(1))
  _ = try device.dma.map(list, .toDevice).unmap()
}
// expected-error: 'buffer' used after consume
