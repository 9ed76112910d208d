import assert from 'node:assert/strict'
import test from 'node:test'
import { advancedOf, isNeeded } from '../../../web/settings/hidden.js'

const eps = { name: 'eps', value: 1e-8, options: { advanced: true } }
const defaults = new Map([['eps', 1e-8]])

test('advanced is what the description marks', () => {
  assert.deepEqual(advancedOf([eps, { name: 'schedule', value: 'constant', options: {} }, { name: 'panel' }]), [eps])
  assert.deepEqual(advancedOf(undefined), [])
})

test('at their defaults and without links they stay hidden', () => {
  assert.equal(isNeeded([eps], defaults, undefined), false)
  assert.equal(isNeeded([eps], defaults, [{ name: 'eps', widget: { name: 'eps' }, link: null }, { name: 'model', link: 3 }]), false)
})

test('another value or a link makes them seen', () => {
  assert.equal(isNeeded([{ ...eps, value: 1e-6 }], defaults, []), true)
  assert.equal(isNeeded([eps], defaults, [{ name: 'eps', widget: { name: 'eps' }, link: 0 }]), true)
})
