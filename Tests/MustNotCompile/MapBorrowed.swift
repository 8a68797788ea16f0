// Who is lent a buffer cannot give it away.
import IOMMU

func mapBorrowed(_ device: Device, _ buffer: borrowing DMABuffer) throws(DMAError) {
  _ = try device.dma.map(buffer, .toDevice)
}
// expected-error: 'buffer' is borrowed and cannot be consumed
