import assert from 'node:assert/strict'
import test from 'node:test'
import { band, line } from '../../../web/chart/paths.js'

test('lines and bands break where there is nothing', () => {
  const same = (value) => value
  assert.equal(line([1, 2, 3, 4], [1, null, 3, 4], same, same), 'M1.0 1.0M3.0 3.0L4.0 4.0')
  assert.equal(band([1, 2, 3], [0, null, 2], [1, null, 3], same, same), 'M1.0 1.0L1.0 0.0ZM3.0 3.0L3.0 2.0Z')
})
