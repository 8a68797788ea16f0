// Who is lent a mapping cannot end it.
import IOMMU

func unmapBorrowed(_ mapping: borrowing Mapping) throws(DMAError) {
  _ = try mapping.unmap()
}
// expected-error: 'mapping' is borrowed and cannot be consumed
