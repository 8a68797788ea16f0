// Compiles: the baseline that the other files break in one place each.
import IOMMU

func good(_ device: Device) throws(DMAError) {
  var buffer = try device.dma.buffer(byteCount: 64)
  buffer.store(UInt32(1))
  let mapping = try device.dma.map(buffer, .bidirectional)
  buffer = try mapping.unmap()
  buffer.store(UInt32(2))

  switch device.dma.tryMap(buffer, .toDevice) {
  case .mapped(let mapping): buffer = try mapping.unmap()
  case .failed(let same, _): buffer = same
  }

  var list = ScatterList()
  list.append(buffer)
  let mapped = try device.dma.map(list, .fromDevice)
  let returned = try mapped.unmap()
  _ = consume returned
}
