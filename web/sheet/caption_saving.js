// When a caption is saved: pure, tested by tests/web/sheet/caption_saving.test.mjs.

/**
 * Returns {commit, undo, isBusy, isChanged} for a field with `value`, whose text stands in a file as `before`.
 *
 * One `save(text, before)` runs at a time and resolves to the text as it was saved; what was committed meanwhile is
 * saved after it. `tell(state, error)` is called with 'saving', 'saved', 'unsaved', 'unchanged' or 'failed', and `done()`
 * when nothing is being saved any more.
 */
export function savingOf(field, before, { save, tell, done }) {
  let saved = before
  let isSaving = false
  let isWanted = false // once more, since the field was left while it was being saved
  const isChanged = () => field.value !== saved

  async function commit() {
    if (isSaving) {
      isWanted = true
      return
    }
    if (!isChanged()) return
    isSaving = true
    do {
      isWanted = false
      await saveOnce()
    } while (isWanted && isChanged())
    isSaving = false
    done()
  }

  async function saveOnce() {
    const text = field.value
    tell('saving')
    try {
      saved = await save(text, saved)
      if (field.value === text) field.value = saved
      tell(isChanged() ? 'unsaved' : 'saved')
    } catch (error) {
      tell(isChanged() ? 'failed' : 'unchanged', error)
    }
  }

  /** Puts back the text that stood there, also into the file if the other one is just being saved. */
  function undo() {
    field.value = saved
    if (isSaving) isWanted = true
    else {
      tell('unchanged')
      done()
    }
  }

  return { commit, undo, isChanged, isBusy: () => isSaving || isChanged() }
}
