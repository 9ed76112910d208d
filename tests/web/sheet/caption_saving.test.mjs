import assert from 'node:assert/strict'
import test from 'node:test'
import { savingOf } from '../../../web/sheet/caption_saving.js'

const turn = () => new Promise((resolve) => setTimeout(resolve))

/** A field and a file that holds "old"; each save waits until it is told how it ends. */
function editing() {
  const field = { value: 'old' }
  const heard = []
  const saves = []
  const file = { text: 'old' }
  const save = (text, before) => new Promise((resolve, reject) => saves.push({
    text, before, reject, resolve: () => { file.text = text.trim(); resolve(file.text) }
  }))
  const saving = savingOf(field, 'old', { save, tell: (state) => heard.push(state), done: () => heard.push('done') })
  return { field, file, saves, heard, saving }
}

test('what was typed is saved when the field is left, and shown as it was saved', async () => {
  const { field, file, saves, heard, saving } = editing()
  saving.commit()
  assert.equal(saves.length, 0, 'nothing was changed')
  field.value = 'new '
  saving.commit()
  assert.ok(saving.isBusy())
  saves[0].resolve()
  await turn()
  assert.deepEqual([file.text, field.value, saves[0].before], ['new', 'new', 'old'])
  assert.deepEqual(heard, ['saving', 'saved', 'done'])
  assert.ok(!saving.isBusy())
})

test('what was typed while a caption is being saved, and then left, is saved as well', async () => {
  const { field, file, saves, heard, saving } = editing()
  field.value = 'first'
  saving.commit()
  field.value = 'first and second'
  saving.commit()
  saving.commit()
  assert.equal(saves.length, 1, 'one at a time')
  saves[0].resolve()
  await turn()
  assert.equal(saves.length, 2)
  assert.deepEqual([saves[1].text, saves[1].before], ['first and second', 'first'])
  saves[1].resolve()
  await turn()
  assert.equal(file.text, 'first and second')
  assert.deepEqual(heard, ['saving', 'unsaved', 'saving', 'saved', 'done'])
})

test('what is typed while a caption is being saved and not left waits until it is', async () => {
  const { field, saves, heard, saving } = editing()
  field.value = 'first'
  saving.commit()
  field.value = 'first and'
  saves[0].resolve()
  await turn()
  assert.deepEqual([saves.length, heard.at(-2), saving.isBusy()], [1, 'unsaved', true])
})

test('Escape while a caption is being saved puts the old one back into the file', async () => {
  const { field, file, saves, saving } = editing()
  field.value = 'a mistake'
  saving.commit()
  saving.undo()
  assert.equal(field.value, 'old')
  saves[0].resolve()
  await turn()
  saves[1].resolve()
  await turn()
  assert.deepEqual([file.text, field.value, saving.isBusy()], ['old', 'old', false])
})

test('a failure is told, the text stays, and what was typed since is tried', async () => {
  const { field, file, saves, heard, saving } = editing()
  field.value = 'first'
  saving.commit()
  saves[0].reject(new Error('the disk is full'))
  await turn()
  assert.deepEqual([field.value, saving.isBusy(), heard], ['first', true, ['saving', 'failed', 'done']])
  saving.commit()
  field.value = 'second'
  saving.commit()
  saves[1].reject(new Error('the disk is full'))
  await turn()
  saves[2].resolve()
  await turn()
  assert.deepEqual([file.text, saves[2].before, saving.isBusy()], ['second', 'old', false])
})

test('Escape without a save in progress only puts the text back', () => {
  const { field, saves, heard, saving } = editing()
  field.value = 'new'
  saving.undo()
  assert.deepEqual([field.value, saves.length, heard], ['old', 0, ['unchanged', 'done']])
})
