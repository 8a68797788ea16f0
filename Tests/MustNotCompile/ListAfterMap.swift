// The list and its buffers are the device's.
import IOMMU

func listAfterMap(_ device: Device) throws(DMAError) {
  var list = ScatterList()
  list.append(try device.dma.buffer(byteCount: 64))
  let mapped = try device.dma.map(list, .toDevice)
  list.append(try device.dma.buffer(byteCount: 64))
  _ = try mapped.unmap()
}
// expected-error: 'list' used after consume
